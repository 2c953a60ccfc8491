"""Words: those of the text, with the times of their tokens; seams lose and double none; subtitles hold every word."""

import itertools
import json
import re

import numpy as np
import pytest

from foldray.models.tokenizer import Tokenizer
from foldray.models.train_tokenizer import bpe_tokenizer, character_tokenizer, unigram_tokenizer
from foldray.runtime.terminal import printable
from foldray.transcription.decoder_times import _warp, without_silence
from foldray.transcription.formats import cut_cues, output_files, written
from foldray.transcription.seams import join_at_seam
from foldray.transcription.transcript import Transcript, Word, join_words
from foldray.transcription.words import FramePath, TimedToken, ctc_tokens, join_paths, to_words

TEXTS = ["ONE TWO THREE", "A | B", "RE DO RE", "ONE THOUSAND AND ONE NIGHTS", "TWO ONE"]


def tokenizers() -> list[Tokenizer]:
    return [character_tokenizer(TEXTS), bpe_tokenizer(TEXTS * 3, 40), unigram_tokenizer(TEXTS * 3, 24)]


@pytest.mark.parametrize("number", range(3))
def test_words_are_those_of_the_text(number: int) -> None:
    tokenizer = tokenizers()[number]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokens = [TimedToken(token, i, i + 1, 0.5) for i, token in enumerate(ids)]
        words = to_words(tokens, tokenizer)
        assert [word.text for word in words] == tokenizer.decode(ids).split()
        assert words[0].start == 0
        assert words[-1].end == len(ids)
        assert all(before.end <= after.start for before, after in itertools.pairwise(words))
        assert all(word.confidence == pytest.approx(0.5) for word in words)


def test_frames_of_a_token_over_a_seam_stay_one_token() -> None:
    ids = np.array([0, 3, 3, 0, 3, 4, 4, 0])
    path = FramePath(ids, np.linspace(0.1, 0.8, 8, dtype=np.float32))
    whole = ctc_tokens(path, 0.04)
    assert [(token.id, round(token.start, 2), round(token.end, 2)) for token in whole] == [
        (3, 0.04, 0.12), (3, 0.16, 0.2), (4, 0.2, 0.28),
    ]  # fmt: skip
    for cut in range(9):
        assert ctc_tokens(join_paths([path.part(0, cut), path.part(cut, None)]), 0.04) == whole


def words_of(text: str, offset: float = 0.0, jitter: float = 0.0) -> list[Word]:
    return [Word(word, i + offset + jitter, i + offset + 0.8 + jitter, 1.0) for i, word in enumerate(text.split())]


@pytest.mark.parametrize("jitter", [-0.45, 0.0, 0.45])
def test_no_word_is_lost_or_doubled_at_a_seam(jitter: float) -> None:
    spoken = list("thecatsatonthematandthedog")
    for seam in range(4, 20):
        before = words_of(" ".join(spoken[: seam + 3]))
        after = words_of(" ".join(spoken[seam - 3 :]), seam - 3, jitter)
        assert [word.text for word in join_at_seam(before, after, seam, 3)] == spoken


def timed(text: str) -> list[Word]:
    """Words with the second at which each is spoken, such as `one@1.5`."""
    pairs = [word.split("@") for word in text.split()]
    return [Word(word, float(second), float(second), 1.0) for word, second in pairs]


def test_a_word_that_is_said_twice_ties_no_seam() -> None:
    lost = join_at_seam(timed("the@7.2 cat@8 sat@9 down@9.6"), timed("kat@8 sad@9 dawn@9.6 the@12.5 end@13"), 10.0, 3)
    assert [word.text for word in lost] == ["the", "cat", "sat", "down", "the", "end"]
    doubled = join_at_seam(timed("go@9 on@9.8 the@12.5"), timed("the@7.2 go@9 on@9.8 x@10.5 y@11"), 10.0, 3)
    assert [word.text for word in doubled] == ["go", "on", "x", "y"]


def test_without_a_common_word_each_side_of_a_seam_counts() -> None:
    joined = join_at_seam(words_of("a b c d"), words_of("x y z", 2), 3.0, 2)
    assert [word.text for word in joined] == ["a", "b", "c", "y", "z"]


def test_scripts_without_spaces_are_joined_without() -> None:
    assert join_words(["你", "好", "hello", "world", "世"]) == "你好 hello world 世"
    tokenizer = character_tokenizer(["你好世界"])
    tokens = [TimedToken(i, i, i + 1, 1.0) for i in tokenizer.encode("你好世界")]
    assert [word.text for word in to_words(tokens, tokenizer)] == list("你好世界")


def test_the_cheapest_path_through_attention_is_found() -> None:
    cost = np.ones((3, 9))
    for row, (first, last) in enumerate([(0, 2), (3, 6), (7, 8)]):
        cost[row, first : last + 1] = -1
    assert _warp(cost).tolist() == [0, 3, 7]


def test_silence_is_cut_off_the_tokens_around_a_pause() -> None:
    """Two words of 0.6 s with a pause of 1 s; the second is timed 0.2 s too late, the first until then."""
    samples = np.zeros(16_000 * 3, np.float32)
    for begin in (0.4, 2.0):
        samples[int(16_000 * begin) :][:9_600] = 0.1 * np.sin(np.arange(9_600) * 0.2)
    tokens = [TimedToken(1, 0.0, 2.2, 0.9), TimedToken(2, 2.2, 3.0, 0.8)]
    cut = without_silence(tokens, samples)
    assert [(token.start, token.end) for token in cut] == [pytest.approx((0.4, 1.0)), pytest.approx((2.2, 2.6))]
    assert [(token.id, token.probability) for token in cut] == [(1, 0.9), (2, 0.8)]
    quiet = [TimedToken(3, 1.2, 1.8, 0.7)]
    assert without_silence(quiet, samples) == quiet
    assert without_silence(quiet, samples[:100]) == quiet


SPOKEN = Transcript(
    "one two <three> & four", 9.0, 4, 0.9,
    (
        Word("one", 0.5, 0.9, 0.99), Word("two", 1.0, 1.4, 0.5), Word("<three>", 3.0, 3.5, 0.25),
        Word("&", 8.1, 8.2, 1.0),
    ),
)  # fmt: skip


def test_formats_hold_every_word() -> None:
    assert written("a b.wav", SPOKEN, "ctm").splitlines()[1] == "a_b.wav 1 1.000 0.400 two 0.500"
    assert written("a", SPOKEN, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,400\none two\n\n"
        "2\n00:00:03,000 --> 00:00:03,500\n<three>\n\n"
        "3\n00:00:08,100 --> 00:00:08,200\n&\n"
    )
    assert written("a", SPOKEN, "vtt").startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.400\none two\n\n")
    assert "&lt;three&gt;" in written("a", SPOKEN, "vtt")
    assert [word["word"] for word in json.loads(written("a", SPOKEN, "jsonl"))["words"]] == [
        "one",
        "two",
        "<three>",
        "&",
    ]
    assert written("a", SPOKEN, "text") == "one two <three> & four\n"


def test_names_of_files_break_no_line() -> None:
    name = "a\x7f\u2028\udcff\n.wav"
    line = written(name, SPOKEN, "jsonl")
    assert line.encode().count(b"\n") == 1
    assert line == f"{printable_line(line)}\n"
    assert json.loads(line)["file"] == name


def printable_line(line: str) -> str:
    return printable(line.removesuffix("\n"))


def test_a_word_that_lasts_until_the_next_one_makes_no_long_cue() -> None:
    words = (Word("hello", 1, 12, 1.0), Word("there", 12, 12.5, 1.0))
    assert "00:00:01,000 --> 00:00:07,000\nhello" in written("a", Transcript("", 13, 1, 1, words), "srt")


def test_cues_have_a_length_and_cover_no_other() -> None:
    """https://github.com/m-bain/whisperX/issues/1315: attention gives words no time, and words at a seam overlap."""
    words = (Word("a", 0.0, 5.8, 1.0), Word("b", 5.75, 6.4, 1.0), Word("c", 9.0, 9.0, 1.0))
    times = re.findall(r"\S+ --> \S+", written("a", Transcript("", 10, 1, 1, words), "srt"))
    assert times == [
        "00:00:00,000 --> 00:00:05,750",
        "00:00:05,750 --> 00:00:06,400",
        "00:00:09,000 --> 00:00:09,100",
    ]


def test_cues_are_short_and_lose_no_word() -> None:
    words = [Word(f"word{i}" * (i % 4 + 1), i * 0.4, i * 0.4 + 0.3, 1.0) for i in range(200)]
    cues = list(cut_cues(words))
    assert [word for cue in cues for word in cue] == words
    assert all(cue[-1].end - cue[0].start <= 6.0 for cue in cues)
    lines = re.findall(r"^word.*$", written("a", Transcript("", 1, 1, 1, tuple(words)), "srt"), re.MULTILINE)
    assert max(map(len, lines)) <= 42


def test_output_files_keep_folders_apart_and_stay_inside() -> None:
    assert output_files(["/x/a/1.wav", "/x/b/1.wav"], "vtt") == {"/x/a/1.wav": "a/1.vtt", "/x/b/1.wav": "b/1.vtt"}
    assert output_files(["utt.1"], "ctm") == {"utt.1": "utt.1.ctm"}
    for names in (["/x/1.wav", "/x/1.flac"], ["../..", "a"], [".."], ["ü" * 126]):
        with pytest.raises(Exception, match=r"--out: (two recordings|the recording)"):
            output_files(names, "srt")
