"""Text normalisation and the character vocabulary."""

import pytest

from foldray.data.text import normalise
from foldray.models.tokenizer import character_tokenizer


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
        ("\u043c\u0438\u0440, \u043c\u0438\u0440", "unicode", "\u041c\u0418\u0420 \u041c\u0418\u0420"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "unicode", "\u0928\u092e\u0938\u094d\u0924\u0947"),
    ],
)  # fmt: skip
def test_normalisation(text: str, profile: str, expected: str) -> None:
    assert normalise(text, profile) == expected  # type: ignore[arg-type]
    assert normalise(expected, profile) == expected  # type: ignore[arg-type]


def test_text_survives_characters() -> None:
    tokenizer = character_tokenizer(["CAB A", "DAB'S"])
    assert tokenizer.vocabulary == ["<pad>", "<unk>", "|", "'", "A", "B", "C", "D", "S"]
    assert tokenizer.decode(tokenizer.encode("A DAB'S CAB")) == "A DAB'S CAB"
    assert tokenizer.encode("AZ") == [4, 1]
    assert tokenizer.decode([0, 2, 4, 1, 2, 2, 5, 0]) == "A B"
