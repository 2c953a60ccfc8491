"""From tokens to words: when each is spoken, and how probable the model finds it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foldray.models.tokenizer import Tokenizer
from foldray.transcription.transcript import UNSPACED, Word

BLANK = 0


@dataclass(frozen=True)
class FramePath:
    """The best token of each CTC frame: ids (T,) and probabilities (T,)."""

    ids_T: npt.NDArray[np.int64]
    probabilities_T: npt.NDArray[np.float32]

    def part(self, begin: int, end: int | None) -> "FramePath":
        """The frames from `begin` up to `end`."""
        return FramePath(self.ids_T[begin:end], self.probabilities_T[begin:end])


@dataclass(frozen=True)
class TimedToken:
    """A token, its seconds, and its probability."""

    id: int
    start: float
    end: float
    probability: float


def join_paths(paths: Sequence[FramePath]) -> FramePath:
    """The frames of consecutive parts of a recording as one path: a token that goes on over a seam stays one."""
    if not paths:
        return FramePath(np.zeros(0, np.int64), np.zeros(0, np.float32))
    ids_T = np.concatenate([path.ids_T for path in paths])
    return FramePath(ids_T, np.concatenate([path.probabilities_T for path in paths]))


def ctc_tokens(path: FramePath, seconds_per_frame: float) -> list[TimedToken]:
    """The tokens of a path: runs of one id, without blanks.

    The best path of all is also the best alignment of its own tokens, so that no second search is needed.

    Args:
        path: Best token of each frame.
        seconds_per_frame: Seconds between frames.
    """
    edges = np.flatnonzero(np.diff(path.ids_T)) + 1
    tokens = []
    for begin, end in zip([0, *edges], [*edges, len(path.ids_T)], strict=True):
        if begin < end and (token := int(path.ids_T[begin])) != BLANK:
            probability = float(path.probabilities_T[begin:end].max())
            tokens.append(TimedToken(token, begin * seconds_per_frame, end * seconds_per_frame, probability))
    return tokens


def to_words(tokens: Sequence[TimedToken], tokenizer: Tokenizer) -> list[Word]:
    """Group tokens into words; a word's confidence is the geometric mean of its tokens' probabilities.

    The words are those of `tokenizer.decode`, except that scripts without spaces are split into single tokens.
    """
    words: list[Word] = []
    for group in _groups(tokenizer.spelled([token.id for token in tokens])):
        text = "".join(part for _, part in group).strip()
        if text:
            own = [tokens[i] for i, _ in group]
            confidence = geometric_mean([token.probability for token in own])
            words.append(Word(text, own[0].start, own[-1].end, confidence))
    return words


def _groups(parts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """The numbers and texts of the tokens of each word. Spaces separate words and may be anywhere in a token."""
    group: list[tuple[int, str]] = []
    for i, part in enumerate(parts):
        for number, piece in enumerate(part.split(" ")):
            if group and (number or _stands_alone(group[-1][1], piece)):
                yield group
                group = []
            if piece:
                group.append((i, piece))
    if group:
        yield group


def _stands_alone(before: str, piece: str) -> bool:
    return bool(before and piece and (UNSPACED.search(before[-1]) or UNSPACED.match(piece[0])))


def geometric_mean(probabilities: Sequence[float]) -> float:
    """The geometric mean; 1 for none."""
    if not probabilities:
        return 1.0
    return float(np.exp(np.mean(np.log(np.maximum(probabilities, 1e-10)))))
