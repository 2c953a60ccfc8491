"""Options of `--decoding beam`, and the lists of words that they name."""

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields

from foldray import storage
from foldray.errors import UserError
from foldray.storage.text import MAX_TEXT_BYTES, NotTextError, decode_text

MAX_WORD = 64
"""Most characters of a listed word: every beginning of it is kept."""

LM_WEIGHT, WORD_BONUS, HOTWORD_WEIGHT = 0.5, 1.5, 10.0
"""The defaults, which are those of pyctcdecode."""


@dataclass(frozen=True)
class BeamOptions:
    """How to search; None stands for the default.

    Attributes:
        beam: How many prefixes to keep.
        lm: URI of an ARPA file.
        lm_weight: Weight of the n-gram's log-probabilities (0.5).
        word_bonus: What every word adds, in nats: the n-gram alone prefers few words (1.5 with an n-gram).
        hotwords: Words to prefer: a text file, or words with commas.
        hotword_weight: What every hotword adds, in nats (10).
        words: The only words that may be found: a text file, or words with commas.
    """

    beam: int = 50
    lm: str | None = None
    lm_weight: float | None = None
    word_bonus: float | None = None
    hotwords: str | None = None
    hotword_weight: float | None = None
    words: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError naming the option for a value out of range, and for a weight of nothing."""
        _check_range("--beam", self.beam, 1, 1000)
        _check_range("--lm-weight", self.lm_weight, 0, 100)
        _check_range("--word-bonus", self.word_bonus, -100, 100)
        _check_range("--hotword-weight", self.hotword_weight, 0, 100)
        for option, value, needs, given in (
            ("--lm-weight", self.lm_weight, "--lm", self.lm),
            ("--word-bonus", self.word_bonus, "--lm", self.lm),
            ("--hotword-weight", self.hotword_weight, "--hotwords", self.hotwords),
        ):
            if value is not None and given is None:
                raise UserError(option, f"has no effect without {needs}; give {needs} too")


def _check_range(option: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise UserError(option, f"must be between {least} and {most} (got {value:g})")


def beam_options(*given: float | str | None) -> BeamOptions | None:
    """Make options of what the command line has for each field of BeamOptions, in their order.

    None if none was given. Raises UserError as BeamOptions does.
    """
    named = zip(fields(BeamOptions), given, strict=True)
    chosen = {field.name: value for field, value in named if value is not None}
    return BeamOptions(**chosen) if chosen else None  # type: ignore[arg-type]


def read_words(given: str, option: str) -> list[str]:
    """Read a list of words.

    Args:
        given: A text file (from disk or a bucket) whose lines are words or phrases, or words with commas: `ANNA,OTTO`.
            A phrase counts as its words.
        option: The option, for messages.

    Returns:
        The words, each once, in their order.

    Raises:
        UserError: There is no such file, it is not text, or there are no words in it.
    """
    if storage.exists(given):
        text = _read(given, option)
    elif "/" in given or given.endswith(".txt"):
        raise UserError(option, f"{given} does not exist")
    else:
        text = given.replace(",", "\n")
    words = list(dict.fromkeys(unicodedata.normalize("NFC", text).split()))
    if not words:
        raise UserError(option, "names no word; write words with commas, or a text file with one on each line")
    if too_long := [word for word in words if len(word) > MAX_WORD]:
        raise UserError(option, f"'{too_long[0][:20]}…' has over {MAX_WORD} characters; shorten or remove it")
    return words


def _read(uri: str, option: str) -> str:
    data = storage.read_range(uri, 0, MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise UserError(option, f"{uri} has over {MAX_TEXT_BYTES:,} bytes; shorten the list")
    try:
        return decode_text(data)
    except NotTextError as error:
        raise UserError(option, f"{uri}: {error}") from None


def spell(words: Iterable[str], alphabet: frozenset[str], option: str) -> frozenset[str]:
    """The words as a model writes them: in its case. Raises UserError for a word that its tokens can't spell."""
    spelled = set()
    for word in words:
        cased = next((form for form in (word, word.upper(), word.lower()) if alphabet.issuperset(form)), None)
        if cased is None:
            lacking = "".join(sorted({*word.upper()} - alphabet - {c.upper() for c in alphabet}))
            raise UserError(option, f"the model has no token for '{lacking}' of '{word}'; respell or remove it")
        spelled.add(cased)
    return frozenset(spelled)


def digest(words: Iterable[str]) -> str:
    """Eight hex digits over a set of words."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:8]
