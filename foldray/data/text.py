"""Text normalisation, and what it leaves out."""

import functools
import importlib
import re
import unicodedata
from collections.abc import Callable

from foldray.config.corpus import TextProfile

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\u2018\u201b\u2032\uff07`\u00b4", "'"))
_LATIN = str.maketrans(
    {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d",
     "Ð": "D", "þ": "th", "Þ": "TH", "ß": "ss", "ẞ": "SS", "ħ": "h", "Ħ": "H", "\u0131": "i", "ŋ": "ng", "Ŋ": "NG",
     "ŧ": "t", "Ŧ": "T", "ə": "e", "Ə": "E", "\u02bb": "'"}
)  # fmt: skip
"""Latin letters that Unicode does not decompose, as English writes them."""

_WHOLE = {"\u0587", "\u0e33", "\u0eb3", "\u0edc", "\u0edd"}
"""Letters of Armenian, Thai and Lao that are spelled as one and that NFKC would take apart."""

_PARTS = re.compile(f"([{''.join(sorted(_WHOLE))}])")
_ZWNJ, _ZWJ = "\u200c", "\u200d"
_UNSEEN = re.compile("[\u034f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Marks that only choose a glyph: the grapheme joiner and variation selectors."""

_UNJOINED = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "COMBINING")
_NO_LETTERS, _NO_LETTERS_OR_DIGITS = re.compile(r"[^A-Za-z']+"), re.compile(r"[^A-Za-z0-9']+")
_SPOKEN_SIGNS = "%&@#\u00a7\u2030"
_NOTHING_LEFT_OUT = re.compile(
    "[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff'\\s.,?!;:\"()\\-\u00a1\u00ab\u00bb\u00bf\u2010-\u2015\u2018-\u201f\u2026]*"
)
"""Texts of which neither profile leaves anything out that is spoken: most texts of Western Europe."""


def normalise(text: str, profile: TextProfile) -> str:
    """Words with single spaces, in upper case unless the profile ends in `_lower`.

    `english` keeps A-Z and the apostrophe (accents are dropped from letters, `æ` becomes AE), `unicode` keeps every
    letter, combining mark and digit of any script; everything else separates words. Format characters are in no
    word and separate none, except joiners inside words of the scripts that spell with them. `as_is` keeps every
    character and its case, in the form NFC. `whisper` and `whisper_basic` are the normalisers of arXiv 2212.04356,
    appendix C, as transformers has them.
    """
    if profile in ("whisper", "whisper_basic"):
        return " ".join(_whisper(profile)(text).split())
    if profile == "as_is":
        return " ".join(unicodedata.normalize("NFC", text).split())
    plain = text.translate(_APOSTROPHES)
    english, lower = profile.startswith("english"), profile.endswith("_lower")
    if plain.isascii():  # most text is; the same as below, five times as fast
        cased = plain.lower() if lower else plain.upper()
        kept = (_NO_LETTERS if english else _NO_LETTERS_OR_DIGITS).sub(" ", cased)
        return " ".join(word for word in kept.split() if word.strip("'"))
    if english:
        kept = _NO_LETTERS.sub(" ", _latin(plain))
        kept = kept.lower() if lower else kept.upper()
    else:
        kept = "".join(c if _is_kept(c) else " " for c in _unicode(plain, lower=lower))
    return " ".join(word for word in map(_without_lone_marks, kept.split()) if word.strip("'"))


@functools.cache
def _whisper(profile: TextProfile) -> Callable[[str], str]:
    # By name: whoever only plans must not import transformers.
    library = importlib.import_module("transformers.models.whisper.english_normalizer")
    if profile == "whisper_basic":
        basic: Callable[[str], str] = library.BasicTextNormalizer()
        return basic
    english: Callable[[str], str] = library.EnglishTextNormalizer({})
    return english


def _latin(plain: str) -> str:
    """Letters without accents, in their case."""
    decomposed = unicodedata.normalize("NFKD", _visible(plain).translate(_LATIN)).translate(_APOSTROPHES)
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _unicode(plain: str, *, lower: bool) -> str:
    """The text in one case and in the form NFKC."""
    composed = _visible(_composed(plain)).translate(_APOSTROPHES)
    # Not by way of upper case, which changes letters that have no capital (ß, dotless i). A dotted capital I is an i
    # with the dot that every i has.
    cased = composed.replace("\u0130", "i").lower() if lower else composed.upper()
    return _composed(cased)


def _composed(text: str) -> str:
    """The form NFKC, in which the letters of `_WHOLE` stay whole."""
    return "".join(part if part in _WHOLE else unicodedata.normalize("NFKC", part) for part in _PARTS.split(text))


def _visible(text: str) -> str:
    """The text without format characters (soft hyphens, byte order marks, zero-width spaces, directions).

    Joiners are part of the spelling of Persian, Sinhala and other scripts. There a zero-width joiner stays after a
    letter or mark, and a non-joiner between two.
    """
    shown = _UNSEEN.sub("", text)
    if not any(unicodedata.category(c) == "Cf" for c in shown):
        return shown
    around = f" {shown} "
    return "".join(
        c for before, c, after in zip(around, shown, around[2:], strict=False) if _is_shown(before, c, after)
    )


def _is_shown(before: str, character: str, after: str) -> bool:
    if unicodedata.category(character) != "Cf":
        return True
    if character == _ZWJ:
        return _joins(before)
    return character == _ZWNJ and _joins(before) and _joins(after)


def _joins(character: str) -> bool:
    """Whether a character is a letter or mark of a script in which joiners spell."""
    spells = unicodedata.category(character)[0] in "LM"
    return spells and not unicodedata.name(character, "COMBINING").startswith(_UNJOINED)


def _is_kept(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character in ("'", _ZWJ, _ZWNJ)


def _without_lone_marks(word: str) -> str:
    """The word without marks and joiners that have no letter before them."""
    if word.isascii():
        return word
    return word[next((i for i, c in enumerate(word) if unicodedata.category(c)[0] not in "MC"), len(word)) :]


# --- What is left out -------------------------------------------------------------------------------


def left_out(text: str, profile: TextProfile) -> tuple[list[str], int]:
    """What `normalise` leaves out of a text that may have been spoken.

    Args:
        text: The text as the corpus has it.
        profile: The profile.

    Returns:
        Letters, digits and signs such as `%` and `$` that are in no word of the normalised text, in their order, and
        the number of words (between spaces) of which nothing else is left.
    """
    if profile in ("as_is", "whisper", "whisper_basic") or _NOTHING_LEFT_OUT.fullmatch(text):
        return [], 0
    english = profile.startswith("english")
    characters: list[str] = []
    words = 0
    for word in text.translate(_APOSTROPHES).split():
        seen = _latin(word) if english else _visible(_composed(word))
        lost = [
            c for c in seen if not (("A" <= c <= "Z" or "a" <= c <= "z") if english else _is_kept(c)) and _is_said(c)
        ]
        characters += lost
        words += bool(lost) and not normalise(word, profile)
    return characters, words


def _is_said(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind[0] in "LN" or kind in ("Sc", "Sm") or character in _SPOKEN_SIGNS
