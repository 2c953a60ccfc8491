"""Significance of the difference of two word error rates: matched-pairs test and paired bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05
GOOD_WORDS = 2
"""Segments end where both systems have so many words in a row right, as in NIST's sc_stats."""
SAMPLES = 10_000
CHUNK = 2**22


@dataclass(frozen=True)
class MatchedPairs:
    """Result of the matched-pairs test of systems A and B.

    `mean` and `std_dev` are of the difference in errors (A - B) per segment; `p_value` is two-tailed.
    """

    segments: int
    mean: float
    std_dev: float
    z: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 0.05."""
        return self.p_value < ALPHA


def matched_pairs(utterances: Sequence[Sequence[tuple[str, str]]]) -> MatchedPairs:
    """The matched-pairs sentence-segment word error test (MAPSSWE).

    Gillick and Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989, as
    SCTK's sc_stats computes it: segments end where both systems have two words right, the standard deviation is that
    of a sample, and z is compared with the normal distribution. If every segment has the same difference, z is 0.

    Args:
        utterances: for each utterance the alignments (see `align_words`) of systems A and B: one pair, or one for each
            pair of runs, such as random seeds. Errors of several pairs are summed segment by segment, so that the same
            hypotheses twice are no more evidence than once.

    Raises:
        ValueError: for alignments of different references.
    """
    differences = [a - b for pairs in utterances for a, b in segment_errors(pairs)]
    count = len(differences)
    mean = sum(differences) / count if count else 0.0
    squares = sum((each - mean) ** 2 for each in differences)
    std_dev = math.sqrt(squares / (count - 1)) if squares else 0.0
    z = mean / (std_dev / math.sqrt(count)) if std_dev else 0.0
    return MatchedPairs(count, mean, std_dev, z, math.erfc(abs(z) / math.sqrt(2)))


def segment_errors(pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Errors of A and B, over all pairs, in each segment of one utterance that has errors."""
    segments: list[tuple[int, int]] = []
    errors = (0, 0)
    good = 0
    first, second = ([sum(at) for at in zip(*map(_errors, side), strict=True)] for side in zip(*pairs, strict=True))
    for position, wrong in enumerate(zip(first, second, strict=True)):
        if any(wrong):
            errors, good = (errors[0] + wrong[0], errors[1] + wrong[1]), 0
        elif position % 2:
            good += 1
            if good >= GOOD_WORDS and any(errors):
                segments.append(errors)
                errors = (0, 0)
    return [*segments, errors] if any(errors) else segments


def _errors(alignment: str) -> list[int]:
    """Errors by position of the reference: words inserted before the first word, whether that word is wrong, words
    inserted before the second, …, words inserted after the last. All alignments of a reference have equal lengths."""
    positions = [0]
    for step in alignment:
        if step == "I":
            positions[-1] += 1
        else:
            positions += [int(step != "C"), 0]
    return positions


def bootstrap_difference(
    errors: Sequence[tuple[int, int]], words: Sequence[int], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Paired bootstrap interval of the difference of two WERs, A - B.

    errors: of A and B, by utterance; words: of the references. Bisani and Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation", ICASSP 2004. With sums by speaker, whole speakers are resampled:
    Liu and Peng, "Statistical testing on ASR performance via blockwise bootstrap", Interspeech 2020.
    """
    difference_U = np.array([first - second for first, second in errors], dtype=np.float64)
    words_U = np.array(words, dtype=np.float64)
    count = len(words_U)
    generator = np.random.default_rng(seed)
    samples = []
    for begin in range(0, SAMPLES, max(1, CHUNK // count)):
        picked_NU = generator.integers(count, size=(min(max(1, CHUNK // count), SAMPLES - begin), count))
        samples.append(difference_U[picked_NU].sum(axis=1) / words_U[picked_NU].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(samples), [tail, 1 - tail])
    return float(low), float(high)
