"""ARPA files: read as written, and refused with one line where they are damaged or built to harm."""

import gzip
import hashlib
import math
from pathlib import Path

import pytest

from foldray.errors import UserError
from foldray.evaluation import ngram
from foldray.evaluation.ngram import LEAST, read_arpa
from tests.support.ngrams import ARPA, bigram_score, write_arpa


@pytest.mark.parametrize("text", ["A B", "A A AB", "B AB A", "A C B", "", "C C"])
def test_scores_are_those_of_the_file(text: str, tmp_path: Path) -> None:
    model = read_arpa(write_arpa(tmp_path))
    total, state = 0.0, model.start()
    for word in [*text.split(), "</s>"]:
        gain, state = model.score(state, word)
        total += gain
    assert total == pytest.approx(bigram_score(text.split()), abs=1e-5)
    assert model.words == {"A", "B", "AB"}
    assert model.digest == hashlib.sha256(ARPA.encode()).hexdigest()[:8]


def test_a_compressed_file_and_other_line_ends_give_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "packed.arpa.gz").write_bytes(gzip.compress(ARPA.encode()))
    (tmp_path / "dos.arpa").write_bytes(ARPA.replace("\n", "\r\n").encode())
    for name in ("packed.arpa.gz", "dos.arpa"):
        model = read_arpa(str(tmp_path / name))
        assert model.words == {"A", "B", "AB"}
        assert model.score(model.start(), "A")[0] == pytest.approx(-0.2 * math.log(10))


def test_an_unknown_word_has_a_least_probability_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = read_arpa(write_arpa(tmp_path, ARPA.replace("-1.7\t<unk>\n", "").replace("ngram 1=6", "ngram 1=5")))
    assert model.words == {"A", "B", "AB"}
    assert model.score(model.start(), "C")[0] == LEAST * math.log(10)
    assert capfd.readouterr() == ("", "")


HOSTILE = {
    "empty": ("", r"begins with b'', not with \\data\\"),
    "not-a-model": ("hello\n", r"begins with b'hello', not with \\data\\"),
    "binary": ("mmap lm http://kheafield.com/code format version 5\n\0", "is a KenLM binary: .* give the ARPA file"),
    "more-than-there-are": (ARPA.replace("ngram 2=5", "ngram 2=400000000000"), r"2-gram 6 of 400000000000: b''"),
    "fewer-than-there-are": (ARPA.replace("ngram 2=5", "ngram 2=4"), r"there is no \\end\\ after the last n-gram"),
    "words-without-end": (ARPA.replace("ngram 1=6", "ngram 1=999999999"), "has 999,999,999 words, over 4,194,304"),
    "cut-off": (ARPA[:-30], "2-gram 4 of 5"),
    "order-left-out": (ARPA.replace("ngram 2=", "ngram 3="), "order 3 follows 1 in its header"),
    "no-orders": ("\\data\\\n\n\\end\\\n", "has n-grams of 0 orders; KenLM reads 2 to 6"),
    "order-seven": (ARPA.replace("ngram 2=5", "\n".join(f"ngram {n}=1" for n in range(2, 8))), "of 7 orders"),
    "long-line": (ARPA.replace("\tAB\t", f"\t{'A' * 70_000}\t"), "a line has over 65,536 bytes"),
    "nul": (ARPA.replace("\tAB\t", "\tA\0B\t"), "1-gram 6 of 6"),
    "not-a-number": (ARPA.replace("-0.6\tB", "nan\tB"), 'Could not parse "nan" into a float'),
    "above-one": (ARPA.replace("-0.6\tB", "0.6\tB"), "Positive log probability 0.6 in the model"),
    "unlisted-word": (ARPA.replace("A B\n", "A Z\n"), "Word Z was not seen in the unigrams"),
    "no-sentences": (ARPA.replace("</s>", "ZZ"), "The ARPA file is missing </s>"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(kind: str, tmp_path: Path) -> None:
    text, problem = HOSTILE[kind]
    with pytest.raises(UserError, match=problem) as refused:
        read_arpa(write_arpa(tmp_path, text))
    assert str(refused.value).startswith(f"{tmp_path}/small.arpa: ")
    assert "\n" not in str(refused.value)
    assert "/checked" not in str(refused.value)


def test_bytes_that_are_no_text_and_damaged_or_huge_archives_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latin = tmp_path / "latin.arpa"
    for order, line in ((1, "-0.9\tAB"), (2, "-0.3\tA B")):
        latin.write_bytes(ARPA.replace(line, line.replace("A", "Ä")).encode("latin-1"))
        with pytest.raises(UserError, match=rf"has the {order}-gram .*, which is not UTF-8; convert the file"):
            read_arpa(str(latin))
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(ARPA.encode())[:-12])
    with pytest.raises(UserError, match=r"is damaged .*; copy it again"):
        read_arpa(str(packed))
    monkeypatch.setattr(ngram, "MAX_BYTES", 5_000)
    packed.write_bytes(gzip.compress(b"\n" * 10_000))
    with pytest.raises(UserError, match="unpacks to over 5,000 bytes; prune the n-gram"):
        read_arpa(str(packed))
    with pytest.raises(UserError, match=f"--lm: {tmp_path}/nowhere does not exist"):
        read_arpa(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("position", range(20, 60, 8))
def test_a_flipped_bit_of_an_archive_is_one_line(position: int, tmp_path: Path) -> None:
    data = bytearray(gzip.compress(ARPA.encode()))
    data[position] ^= 0xFF
    (tmp_path / "flipped.arpa.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"flipped\.arpa\.gz: is (damaged|not an ARPA file) \("):
        read_arpa(str(tmp_path / "flipped.arpa.gz"))


def test_a_full_disk_is_no_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        ngram._copy(write_arpa(tmp_path), Path("/dev/full"))
