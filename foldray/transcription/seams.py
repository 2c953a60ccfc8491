"""Joining the words of chunks, where a decoder heard both sides of a seam twice."""

from collections.abc import Sequence

from foldray.transcription.transcript import Word

NEAR_SECONDS = 1.0
"""How far apart two chunks time one word at most: "the" is said again and again."""


def join_at_seam(before: Sequence[Word], after: Sequence[Word], seam: float, reach: float) -> list[Word]:
    """Join the words of two chunks that overlap around a seam, so that none is lost or doubled.

    Both chunks have the words around the seam. The longest run of words that are equal, and near in time, ties them
    together: the first chunk's words count up to its middle, the second's from there on. Without such a run, each chunk
    counts on its own side.

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
    size, i, j = _longest_run(left, right)
    if size:
        half = size - size // 2
        return [*before[: first + i + half], *after[j + half :]]
    return [
        *(word for word in before if _middle(word) < seam),
        *(word for word in after if _middle(word) >= seam),
    ]


def _longest_run(left: Sequence[Word], right: Sequence[Word]) -> tuple[int, int, int]:
    """The length of the longest run of words that both have, and where it begins in each."""
    best = (0, 0, 0)
    lengths = [0] * (len(right) + 1)  # of the run that ends before each word of `right`
    for i, ours in enumerate(left):
        previous, lengths = lengths, [0] * (len(right) + 1)
        for j, theirs in enumerate(right):
            if ours.text.casefold() == theirs.text.casefold() and abs(_middle(ours) - _middle(theirs)) <= NEAR_SECONDS:
                size = lengths[j + 1] = previous[j] + 1
                best = max(best, (size, i + 1 - size, j + 1 - size), key=lambda run: run[0])
    return best


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2
