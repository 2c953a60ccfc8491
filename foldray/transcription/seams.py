"""Joining the words of chunks, where a decoder heard both sides of a seam twice."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from foldray.transcription.transcript import Word


def join_at_seam(before: Sequence[Word], after: Sequence[Word], seam: float, reach: float) -> list[Word]:
    """Join the words of two chunks that overlap around a seam, so that none is lost or doubled.

    Both chunks have the words around the seam. The longest run of equal words ties them together: the first chunk's
    words count up to its middle, the second's from there on. Without such a run, each chunk counts on its own side.

    Args:
        before, after: Words with times from the start of the recording.
        seam: Second at which the second chunk's own part begins.
        reach: Seconds on either side of the seam that both chunks have.

    Example:
        >>> one, two = Word("one", 0, 1, 1), Word("two", 1, 2, 1)
        >>> [word.text for word in join_at_seam([one, two], [two, Word("three", 2, 3, 1)], 1.5, 1)]
        ['one', 'two', 'three']
    """
    first = next((i for i, word in enumerate(before) if word.end > seam - reach), len(before))
    last = next((i for i, word in enumerate(after) if word.start > seam + reach), len(after))
    left, right = before[first:], after[:last]
    ours, theirs = ([word.text.casefold() for word in side] for side in (left, right))
    match = SequenceMatcher(a=ours, b=theirs, autojunk=False).find_longest_match()
    if match.size:
        half = match.size - match.size // 2
        return [*before[: first + match.a + half], *after[match.b + half :]]
    return [
        *(word for word in before if _middle(word) < seam),
        *(word for word in after if _middle(word) >= seam),
    ]


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2
