"""The beam search over CTC with words: its scores are those of sums over all alignments."""

import itertools
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from foldray.errors import UserError
from foldray.evaluation.beam_options import BeamOptions, read_words
from foldray.evaluation.decode import greedy_texts
from foldray.evaluation.prefix_search import ctc_nbest
from foldray.evaluation.word_scores import WordScorer, word_search
from foldray.models.tokenizer import Tokenizer
from tests.support.ngrams import ARPA, bigram_score, write_arpa

CHARACTERS = Tokenizer(["<pad>", "<unk>", "|", "A", "B"])
WIDE = 100_000


def subwords() -> Tokenizer:
    """Five byte-pair tokens with which AB can be written in two ways."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "▁A", "▁AB", "B"])}
    built = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    built.pre_tokenizer, built.decoder = pre_tokenizers.Metaspace("▁"), decoders.Metaspace("▁")
    return Tokenizer(list(vocabulary), built.to_str())


def random_frames(frames: int, tokens: int, seed: int, peaked: float = 1.0) -> Tensor:
    logits_TV = torch.randn(frames, tokens, generator=torch.Generator().manual_seed(seed)) * peaked
    return logits_TV.log_softmax(-1)


def texts_of_all_alignments(log_probs_TV: Tensor, tokenizer: Tokenizer) -> dict[str, float]:
    """log P(text | audio), by adding up every alignment."""
    sums: defaultdict[str, float] = defaultdict(float)
    for path in itertools.product(range(log_probs_TV.shape[1]), repeat=len(log_probs_TV)):
        probability = math.exp(sum(log_probs_TV[t, token].item() for t, token in enumerate(path)))
        merged = [token for token, _ in itertools.groupby(path)]
        sums[tokenizer.decode(merged)] += probability
    return {text: math.log(probability) for text, probability in sums.items()}


@pytest.mark.parametrize("make", [lambda: CHARACTERS, subwords], ids=["characters", "sub-words"])
@pytest.mark.parametrize("with_lm", [False, True])
def test_a_wide_beam_gives_every_text_its_exact_score(make: object, with_lm: bool, tmp_path: Path) -> None:
    tokenizer = make()  # type: ignore[operator]
    lm = {"lm": write_arpa(tmp_path), "lm_weight": 0.7, "word_bonus": 0.9} if with_lm else {}
    search = word_search(BeamOptions(beam=1000, **lm), tokenizer)  # type: ignore[arg-type]
    for seed in range(3):
        log_probs_TV = random_frames(5, 5, seed)
        expected = {
            text: ctc + (0.7 * bigram_score(text.split()) + 0.9 * len(text.split()) if with_lm else 0.0)
            for text, ctc in texts_of_all_alignments(log_probs_TV, tokenizer).items()
        }
        found = search.nbest(log_probs_TV)
        assert dict(found) == pytest.approx(expected, abs=2e-5)
        assert found[0][0] == max(expected, key=lambda text: expected[text])
        assert found == sorted(found, key=lambda entry: -entry[1])


def test_a_uniform_n_gram_changes_no_choice_among_texts_of_equal_length(tmp_path: Path) -> None:
    words = "".join(f"-0.7\t{word}\t0\n" for word in ("<unk>", "<s>", "</s>", "A", "B"))
    uniform = f"\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n{words}\n\\2-grams:\n-0.7\tA B\n"
    search = word_search(
        BeamOptions(beam=1000, lm=write_arpa(tmp_path, uniform + "\n\\end\\\n"), lm_weight=1, word_bonus=0), CHARACTERS
    )
    log_probs_TV = random_frames(5, 5, 7)
    constant = 0.7 * math.log(10)
    expected = {
        text: ctc - constant * (len(text.split()) + 1)
        for text, ctc in texts_of_all_alignments(log_probs_TV, CHARACTERS).items()
    }
    assert dict(search.nbest(log_probs_TV)) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("make", [lambda: CHARACTERS, subwords], ids=["characters", "sub-words"])
def test_a_beam_of_one_is_greedy_where_frames_are_certain(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    search = word_search(BeamOptions(beam=1), tokenizer)
    for seed in range(20):
        log_probs_TV = random_frames(30, 5, seed, peaked=40.0)
        greedy = greedy_texts(log_probs_TV[None], torch.tensor([30]), tokenizer)[0]
        assert search.nbest(log_probs_TV)[0][0] == greedy


def test_without_words_the_search_is_that_of_tokens() -> None:
    log_probs_TV = random_frames(5, 5, 3)
    sums: dict[str, float] = {}
    for tokens, score in ctc_nbest(log_probs_TV, WIDE):
        text = CHARACTERS.decode(tokens)
        sums[text] = math.log(math.exp(sums[text]) + math.exp(score)) if text in sums else score
    assert dict(word_search(BeamOptions(beam=1000), CHARACTERS).nbest(log_probs_TV)) == pytest.approx(sums, abs=1e-5)


LETTERS = Tokenizer(["<pad>", "<unk>", "|", *"AINORT"])


def frames_of(text: str, unsure: dict[int, str]) -> Tensor:
    """Frames that spell a text with blanks between; at `unsure` positions another letter has a tenth of the odds."""
    ids = {letter: i for i, letter in enumerate(["", "", " ", *"AINORT"])}
    probs_TV = torch.full((2 * len(text), 9), 1e-4)
    for position, letter in enumerate(text):
        probs_TV[2 * position, ids[letter]] = 1.0
        probs_TV[2 * position + 1, 0] = 1.0
        if position in unsure:
            probs_TV[2 * position, ids[unsure[position]]] = 0.1
    return (probs_TV / probs_TV.sum(-1, keepdim=True)).log()


def test_a_hotword_that_greedy_decoding_misses_by_a_letter_is_found() -> None:
    log_probs_TV = frames_of("A TRIN TO ROTA", {4: "A"})  # TRAN is meant
    assert greedy_texts(log_probs_TV[None], torch.tensor([len(log_probs_TV)]), LETTERS) == ["A TRIN TO ROTA"]
    without = word_search(BeamOptions(), LETTERS)
    assert without.nbest(log_probs_TV)[0][0] == "A TRIN TO ROTA"
    boosted = word_search(BeamOptions(hotwords="tran,nort"), LETTERS)
    text, score = boosted.nbest(log_probs_TV)[0]
    assert text == "A TRAN TO ROTA"
    labels_1U = torch.tensor([[LETTERS.vocabulary.index(c) for c in text.replace(" ", "|")]])
    loss = torch.nn.functional.ctc_loss(
        log_probs_TV[:, None], labels_1U, torch.tensor([len(log_probs_TV)]), torch.tensor([len(text)]), reduction="sum"
    )
    assert score == pytest.approx(10.0 - loss.item(), abs=0.01)  # a few alignments left the beam
    weak = word_search(BeamOptions(hotwords="tran", hotword_weight=2.0), LETTERS)
    assert weak.nbest(log_probs_TV)[0][0] == "A TRIN TO ROTA"


def test_a_beginning_of_a_hotword_earns_nothing_in_the_end() -> None:
    boosted = word_search(BeamOptions(beam=1000, hotwords="AB", hotword_weight=3.0), CHARACTERS)
    plain = word_search(BeamOptions(beam=1000), CHARACTERS)
    log_probs_TV = random_frames(5, 5, 1)
    expected = {text: score + 3.0 * text.split().count("AB") for text, score in plain.nbest(log_probs_TV)}
    assert dict(boosted.nbest(log_probs_TV)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("make", [lambda: CHARACTERS, subwords], ids=["characters", "sub-words"])
def test_a_closed_list_finds_its_words_alone_with_their_exact_scores(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    closed = word_search(BeamOptions(beam=1000, words="ab,b"), tokenizer)
    log_probs_TV = random_frames(5, 5, 2)
    expected = {
        text: score
        for text, score in texts_of_all_alignments(log_probs_TV, tokenizer).items()
        if set(text.split()) <= {"AB", "B"}
    }
    assert dict(closed.nbest(log_probs_TV)) == pytest.approx(expected, abs=2e-5)
    narrow = word_search(BeamOptions(beam=2, words="ABBA"), CHARACTERS)
    assert {text for seed in range(5) for text, _ in narrow.nbest(random_frames(5, 5, seed))} <= {"", "ABBA"}


def test_the_case_of_lists_and_n_grams_is_the_model_s(tmp_path: Path) -> None:
    lower = write_arpa(tmp_path, ARPA.replace("A", "a").replace("B", "b"))
    upper = write_arpa(tmp_path, name="upper.arpa")
    log_probs_TV = random_frames(6, 5, 4)
    texts = [word_search(BeamOptions(lm=lm), CHARACTERS).nbest(log_probs_TV) for lm in (lower, upper)]
    assert texts[0] == texts[1]
    with pytest.raises(UserError, match=r"--lm: the model can spell no word of .* \(A, AB, B\); train it"):
        word_search(BeamOptions(lm=upper), Tokenizer(["<pad>", "<unk>", "|", *"xyz"]))


def test_the_name_tells_how_a_row_was_decoded(tmp_path: Path) -> None:
    lm, listed = write_arpa(tmp_path), tmp_path / "names.txt"
    listed.write_text("b\nab a\n")
    options = BeamOptions(beam=20, lm=lm, word_bonus=-1, hotwords="A,B,AB", words=str(listed))
    search = word_search(options, CHARACTERS)
    digest = word_search(BeamOptions(words="B,A,AB"), CHARACTERS).name.removeprefix("beam-50:words-")
    assert search.name.split(":")[:2] == ["beam-20", f"lm-{search.scorer.lm.ngram.digest}-0.5--1"]  # type: ignore[union-attr]
    assert search.name.split(":")[2:] == [f"hotwords-{digest}-10", f"words-{digest}"]
    assert isinstance(search.scorer, WordScorer)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"beam": 0}, r"--beam: must be between 1 and 1000 \(got 0\)"),
        ({"lm_weight": 0.5}, "--lm-weight: has no effect without --lm; give --lm too"),
        ({"lm": "x", "lm_weight": math.nan}, r"--lm-weight: must be between 0 and 100 \(got nan\)"),
        ({"hotword_weight": 3.0}, "--hotword-weight: has no effect without --hotwords; give --hotwords too"),
        ({"hotwords": "A,Ç"}, "--hotwords: the model has no token for 'Ç' of 'Ç'; respell or remove it"),
        ({"hotwords": " , "}, "--hotwords: names no word; write words with commas, or a text file"),
        ({"words": "lists/none.txt"}, "--words: lists/none.txt does not exist"),
        ({"words": "A" * 65}, "--words: 'AAAAAAAAAAAAAAAAAAAA…' has over 64 characters; shorten or remove it"),
    ],
)
def test_wrong_options_are_one_line(given: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        word_search(BeamOptions(**given), CHARACTERS)  # type: ignore[arg-type]


def test_characters_without_a_word_boundary_are_one_line() -> None:
    with pytest.raises(UserError, match=r"--decoding: beam needs words, and .* have no '\|' between them; use ctc"):
        word_search(BeamOptions(), Tokenizer(["<pad>", "<unk>", "A"]))


def test_more_hotwords_than_a_path_has_letters_are_words() -> None:
    words = [f"W{number}" for number in range(2000)]
    assert read_words(",".join(words), "--hotwords") == words
