"""Whether two word error rates on the same utterances differ: matched pairs, and a paired bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05
GOOD_WORDS = 2
"""Words that both sides have right between two segments, as NIST's sc_stats asks."""
SAMPLES = 10_000
CHUNK = 2**22


@dataclass(frozen=True)
class MatchedPairs:
    """Two systems on the same utterances. `mean` and `std_dev` are errors of the first more than of the second, by
    segment; `p_value` is two-tailed."""

    segments: int
    mean: float
    std_dev: float
    z: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether the difference is, at 0.05."""
        return self.p_value < ALPHA


def matched_pairs(utterances: Sequence[Sequence[tuple[str, str]]]) -> MatchedPairs:
    """The matched-pairs sentence-segment word error test (MAPSSWE) of alignments (see `align_words`): of each utterance
    one pair, or as many as there are pairs of systems, such as seeds.

    Gillick and Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989, as
    SCTK's sc_stats computes it: segments end where both have two words right, the deviation is that of a sample, the
    normal distribution decides; where every segment has the same difference there is no deviation and nothing is said
    (z = 0). Several pairs are added up segment by segment, so that saying the same thing twice is no more evidence than
    saying it once. Raises ValueError for alignments of different references.
    """
    differences = [a - b for pairs in utterances for a, b in segment_errors(pairs)]
    count = len(differences)
    mean = sum(differences) / count if count else 0.0
    squares = sum((each - mean) ** 2 for each in differences)
    std_dev = math.sqrt(squares / (count - 1)) if squares else 0.0
    z = mean / (std_dev / math.sqrt(count)) if std_dev else 0.0
    return MatchedPairs(count, mean, std_dev, z, math.erfc(abs(z) / math.sqrt(2)))


def segment_errors(pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Errors of both sides, over all pairs, in every segment of one utterance that has any."""
    segments: list[tuple[int, int]] = []
    errors = (0, 0)
    good = 0
    first, second = ([sum(at) for at in zip(*map(_errors, side), strict=True)] for side in zip(*pairs, strict=True))
    for place, wrong in enumerate(zip(first, second, strict=True)):
        if any(wrong):
            errors, good = (errors[0] + wrong[0], errors[1] + wrong[1]), 0
        elif place % 2:
            good += 1
            if good >= GOOD_WORDS and any(errors):
                segments.append(errors)
                errors = (0, 0)
    return [*segments, errors] if any(errors) else segments


def _errors(alignment: str) -> list[int]:
    """Errors at every place of a reference, the same for all its alignments: words inserted before the first word,
    whether that is wrong, words inserted before the second …, words inserted behind the last."""
    places = [0]
    for step in alignment:
        if step == "I":
            places[-1] += 1
        else:
            places += [int(step != "C"), 0]
    return places


def bootstrap_difference(
    errors: Sequence[tuple[int, int]], words: Sequence[int], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of the difference of two WERs, first less second, over utterances drawn again and again.

    errors: of both sides, by utterance; words: of the references. Bisani and Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation", ICASSP 2004. With sums by speaker, whole speakers are drawn: Liu and Peng,
    "Statistical testing on ASR performance via blockwise bootstrap", Interspeech 2020.
    """
    difference_U = np.array([first - second for first, second in errors], dtype=np.float64)
    words_U = np.array(words, dtype=np.float64)
    count = len(words_U)
    generator = np.random.default_rng(seed)
    drawn = []
    for begin in range(0, SAMPLES, max(1, CHUNK // count)):
        picked_NU = generator.integers(count, size=(min(max(1, CHUNK // count), SAMPLES - begin), count))
        drawn.append(difference_U[picked_NU].sum(axis=1) / words_U[picked_NU].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return float(low), float(high)
