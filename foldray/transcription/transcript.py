"""The text of a recording and its words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"  # kana, ideographs, their punctuation
)
UNSPACED = re.compile(f"[{_UNSPACED}]")
"""Characters of scripts that put no space between words."""


@dataclass(frozen=True)
class Word:
    """A word, when it is spoken (seconds from the start of the recording), and how probable the model finds it."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """The text of a recording at one depth.

    Attributes:
        text: All words.
        seconds: Length of the recording.
        depth: The depth that wrote it; the deepest of them, if `auto` chose several.
        confidence: Geometric mean of the probabilities of its tokens; 1 for no text, None where they were not computed.
        words: Words with times; empty unless they were asked for.
        notes: What may be wrong with the text.
    """

    text: str
    seconds: float
    depth: int
    confidence: float | None = 1.0
    words: tuple[Word, ...] = ()
    notes: tuple[str, ...] = field(default=())


def join_words(words: Sequence[str]) -> str:
    """Join words with spaces, except within scripts that use none.

    Example:
        >>> join_words(["hello", "world"]), join_words(["你好", "世界"])
        ('hello world', '你好世界')
    """
    text = ""
    for word in words:
        glued = text and word and UNSPACED.match(text[-1]) and UNSPACED.match(word[0])
        text += word if not text or glued else f" {word}"
    return text
