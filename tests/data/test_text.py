"""Text normalisation and the character vocabulary."""

import functools
import random
import sys
import unicodedata
from typing import get_args

import pytest

from foldray.config.corpus import TextProfile
from foldray.data.text import left_out, normalise
from foldray.models.train_tokenizer import character_tokenizer


@pytest.mark.parametrize(
    ("text", "profile", "expected"),
    [
        ("Hello,  world!", "english", "HELLO WORLD"),
        ("it\u2019s O`Clock", "english", "IT'S O'CLOCK"),
        ("na\u00efve caf\u00e9", "english", "NAIVE CAFE"),
        ("route 66", "english", "ROUTE"),
        ("' '' -", "english", ""),
        ("Stra\u00dfe 12", "unicode", "STRASSE 12"),
        ("Caf\u00e9, 12!", "unicode_lower", "caf\u00e9 12"),
        ("Don\u2019t  STOP", "english_lower", "don't stop"),
        ("Ain't it, Zo\u00eb?  Yes.", "as_is", "Ain't it, Zo\u00eb? Yes."),
        ("na\u00efve \u00c6sop, S\u00f8ren, \u0141\u00f3d\u017a", "english", "NAIVE AESOP SOREN LODZ"),
        ("don\u00b4t \u2764\ufe0f \u0301", "unicode", "DON'T"),
        ("don\u00b4t \u2764\ufe0f \u0301", "english", "DON'T"),
        ("co\u00adop wor\u200bld \ufeffend\u2060ed", "english_lower", "coop world ended"),
        ("co\u00adop wor\u200bld \ufeffend\u2060ed", "unicode", "COOP WORLD ENDED"),
        ("auf\u200clage \u200dx\u200d", "unicode", "AUFLAGE X"),
        ("\u0645\u06cc\u200c\u062e\u0648\u200c", "unicode", "\u0645\u06cc\u200c\u062e\u0648"),
        ("\u0d85\u0dca\u200d\u0dbb\u200d", "unicode_lower", "\u0d85\u0dca\u200d\u0dbb\u200d"),
        ("\u0131l\u0131k \u0130zmir Stra\u00dfe \u0587", "unicode_lower", "\u0131l\u0131k izmir stra\u00dfe \u0587"),
        ("\u039f\u0394\u039f\u03a3", "unicode_lower", "\u03bf\u03b4\u03bf\u03c2"),
        ("\u0131l\u0131k \u0587", "unicode", "ILIK \u0535\u0552"),
        ("\u0e17\u0e33", "unicode", "\u0e17\u0e33"),
        ("a\u200db  |", "as_is", "a\u200db |"),
        ("\u043c\u0438\u0440, \u043c\u0438\u0440", "unicode", "\u041c\u0418\u0420 \u041c\u0418\u0420"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "unicode", "\u0928\u092e\u0938\u094d\u0924\u0947"),
    ],
)  # fmt: skip
def test_normalisation(text: str, profile: str, expected: str) -> None:
    assert normalise(text, profile) == expected  # type: ignore[arg-type]
    assert normalise(expected, profile) == expected  # type: ignore[arg-type]


@functools.cache
def _assigned() -> str:
    return "".join(c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c) not in ("Cs", "Cn", "Co"))


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of assigned characters of every script, with those that are easily torn or changed among them."""
    draw = random.Random(seed)
    odd = "ab|' \u200d\u200c\u00ad\u0301\u00df\u0130\u0131\u03a3\u0587\u2581<>"
    return ["".join(draw.choice(draw.choice([_assigned(), odd])) for _ in range(8)) for _ in range(count)]


OWN = sorted({*get_args(TextProfile)} - {"whisper"})  # which reads `1 2` as a number the second time


@pytest.mark.parametrize("profile", OWN)
def test_a_normalised_text_stays_as_it_is(profile: TextProfile) -> None:
    once = [normalise(text, profile) for text in random_texts(400, seed=1)]
    assert [normalise(text, profile) for text in once] == once
    assert all(text == " ".join(text.split()) for text in once)


@pytest.mark.parametrize("profile", ["unicode", "unicode_lower"])
def test_no_letter_and_no_digit_is_lost_from_a_unicode_text(profile: TextProfile) -> None:
    for text in random_texts(400, seed=2):
        assert not [c for c in left_out(text, profile)[0] if c.isalpha() or c.isdecimal()]


@pytest.mark.parametrize("invisible", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u200e"])
@pytest.mark.parametrize("profile", ["english", "english_lower", "unicode", "unicode_lower"])
def test_an_invisible_character_separates_no_words(invisible: str, profile: TextProfile) -> None:
    assert normalise(f"wor{invisible}ld{invisible} {invisible}caf\u00e9", profile) == normalise(
        "world caf\u00e9", profile
    )


@pytest.mark.parametrize(
    ("text", "profile", "characters", "words"),
    [
        ("call 911 at 5 pm", "english", "9115", 2),
        ("BA2490: don't, please!", "english", "2490", 0),
        ("\u043c\u0438\u0440 caf\u00e9 \u00e6", "english_lower", "\u043c\u0438\u0440", 1),
        ("50% of $3, caf\u00e9 12 \u20ac", "unicode", "%$\u20ac", 1),
        ("50% of $3", "as_is", "", 0),
    ],
)
def test_what_is_left_out_is_counted(text: str, profile: TextProfile, characters: str, words: int) -> None:
    assert left_out(text, profile) == ([*characters], words)


def test_text_survives_characters() -> None:
    tokenizer = character_tokenizer(["CAB A", "DAB'S"])
    assert tokenizer.vocabulary == ["<pad>", "<unk>", "|", "'", "A", "B", "C", "D", "S"]
    assert tokenizer.decode(tokenizer.encode("A DAB'S CAB")) == "A DAB'S CAB"
    assert tokenizer.encode("AZ") == [4, 1]
    assert tokenizer.decode([0, 2, 4, 1, 2, 2, 5, 0]) == "A B"


def test_every_text_survives_characters_whatever_it_holds() -> None:
    texts = [normalise(text, "as_is") for text in [*random_texts(300, seed=3), "<pad> | <unk>", "a|b \u2581"]]
    tokenizer = character_tokenizer(texts)
    assert len(set(tokenizer.vocabulary)) == len(tokenizer)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    assert {1, 0} & {i for text in texts for i in tokenizer.encode(text)} == set()


def test_a_bar_is_no_word_boundary() -> None:
    tokenizer = character_tokenizer(["a | b"])
    assert tokenizer.vocabulary == ["<pad>", "<unk>", "|", "a", "b", "||"]
    assert tokenizer.encode("a | b|") == [3, 2, 5, 2, 4, 5]
    assert character_tokenizer(["a b"]).encode("a |") == [3, 2, 1]


@pytest.mark.parametrize(
    ("text", "profile", "expected"),
    [
        ("Mr. Smith isn't here, $25!", "whisper", "mister smith is not here $25"),
        ("twenty five dollars", "whisper", "$25"),
        ("[noise] call nine one one", "whisper", "call 911"),
        ("Zwölf (laut) Boxkämpfer!", "whisper_basic", "zwölf boxkämpfer"),
    ],
)
def test_whisper_s_normaliser_is_its_own(text: str, profile: TextProfile, expected: str) -> None:
    assert normalise(text, profile) == expected
