"""Text: normalisation and the character vocabulary."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

PAD, UNKNOWN, WORD_BOUNDARY = "<pad>", "<unk>", "|"
_APOSTROPHES = {"\u2019": "'", "\u02bc": "'", "\u2018": "'", "`": "'"}


def normalise(text: str, profile: Literal["english", "unicode"]) -> str:
    """Upper-case words with single spaces.

    `english` keeps A-Z and the apostrophe (accents are dropped from letters), `unicode` keeps every
    letter, combining mark and digit of any script. Everything else separates words.
    """
    form: Literal["NFKD", "NFKC"] = "NFKD" if profile == "english" else "NFKC"
    folded = unicodedata.normalize(form, "".join(_APOSTROPHES.get(c, c) for c in text)).upper()
    if profile == "english":
        kept = ("" if unicodedata.combining(c) else c if "A" <= c <= "Z" or c == "'" else " " for c in folded)
    else:
        kept = (c if unicodedata.category(c)[0] in "LMN" or c == "'" else " " for c in folded)
    words = "".join(kept).split()
    return " ".join(word for word in words if word.strip("'"))


def character_vocabulary(texts: Iterable[str]) -> list[str]:
    """Tokens by id: blank (the padding token), unknown, word boundary, then the characters in order."""
    characters = sorted(set().union(*map(set, texts)) - {" "})
    return [PAD, UNKNOWN, WORD_BOUNDARY, *characters]


def encode(text: str, vocabulary: Sequence[str]) -> list[int]:
    """Token ids of normalised text; a character the vocabulary lacks becomes `<unk>`."""
    ids = {token: i for i, token in enumerate(vocabulary)}
    return [ids.get(WORD_BOUNDARY if c == " " else c, 1) for c in text]


def decode(ids: Iterable[int], vocabulary: Sequence[str]) -> str:
    """Text of token ids without blanks or unknowns."""
    characters = (vocabulary[i] for i in ids if i > 1)
    return " ".join("".join(" " if c == WORD_BOUNDARY else c for c in characters).split())
