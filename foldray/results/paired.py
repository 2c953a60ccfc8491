"""Two systems compared on the same utterances: word error rates, bootstrap interval and matched-pairs test."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from foldray.errors import UserError
from foldray.results.rows import Hypothesis
from foldray.results.significance import bootstrap_difference, matched_pairs

Hypotheses = Mapping[str, Hypothesis]
"""Of one depth of a run, by utterance id."""


class Comparison(TypedDict):
    """Two systems A and B on the same utterances. WERs, their difference (A - B) and its interval are fractions."""

    wer_a: float
    wer_b: float
    difference: float
    low: float
    high: float
    segments: int
    z: float
    p_value: float
    significant: bool
    couples: int
    num_utterances: int
    num_words: int
    num_speakers: NotRequired[int]
    margin: NotRequired[float]
    within_margin: NotRequired[bool]


def compare_hypotheses(
    couples: Sequence[tuple[Hypotheses, Hypotheses]],
    what: str,
    *,
    margin: float | None = None,
    by_speaker: bool = False,
) -> Comparison:
    """Compare two depths: the hypotheses of both for the same utterances, for each couple of runs.

    An utterance that several couples have counts once: its errors are summed before testing and resampling. Raises
    UserError, naming `what`, if references differ.
    """
    # The text is part of the key: two preparations of one test set have the same utterances.
    utterances: dict[tuple[str, str], list[tuple[Hypothesis, Hypothesis]]] = defaultdict(list)
    for side_a, side_b in couples:
        if side_a.keys() != side_b.keys() or any(side_a[i]["reference"] != side_b[i]["reference"] for i in side_a):
            raise UserError(what, "were scored against different references; evaluate both on the same prepared corpus")
        for i in sorted(side_a):
            utterances[i, side_a[i]["reference"]].append((side_a[i], side_b[i]))
    errors = [(sum(_errors(a) for a, _ in each), sum(_errors(b) for _, b in each)) for each in utterances.values()]
    words = [sum(a["num_words"] for a, _ in each) for each in utterances.values()]
    test = matched_pairs([[(a["alignment"], b["alignment"]) for a, b in each] for each in utterances.values()])
    speakers = [_speaker(each) for each in utterances.values()]
    resampled = _by_speaker(speakers, errors, words, what) if by_speaker else (errors, words)
    low, high = bootstrap_difference(*resampled)
    wer_a, wer_b = (sum(side) / sum(words) for side in zip(*errors, strict=True))
    compared: Comparison = {
        "wer_a": wer_a,
        "wer_b": wer_b,
        "difference": wer_a - wer_b,
        "low": low,
        "high": high,
        "segments": test.segments,
        "z": test.z,
        "p_value": test.p_value,
        "significant": test.significant,
        "couples": len(couples),
        "num_utterances": len(utterances),
        "num_words": sum(each[0][0]["num_words"] for each in utterances.values()),
    }
    if by_speaker:
        compared["num_speakers"] = len(resampled[1])
    if margin is not None:
        compared |= {"margin": margin, "within_margin": high <= margin}
    return compared


MIN_SPEAKERS = 5
"""With fewer, the interval says little about how speakers differ: of three, one sample in nine has a single speaker."""


def _speaker(pairs: Sequence[tuple[Hypothesis, Hypothesis]]) -> str:
    """The speaker of an utterance by either side: one preparation of a corpus may name speakers, another not."""
    return next((each["speaker"] for pair in pairs for each in pair if each["speaker"]), "")


def _by_speaker(
    speakers: Sequence[str], errors: Sequence[tuple[int, int]], words: Sequence[int], what: str
) -> tuple[list[tuple[int, int]], list[int]]:
    """Errors and words summed by speaker. Raises UserError for utterances without a speaker or too few speakers."""
    if nameless := sum(not speaker for speaker in speakers):
        raise UserError(
            what,
            f"{nameless:,} of {len(speakers):,} utterances have no speaker; leave --by-speaker out, or score both on a "
            "corpus that names speakers",
        )
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for speaker, (a, b), count in zip(speakers, errors, words, strict=True):
        sums[speaker] = [total + more for total, more in zip(sums[speaker], (a, b, count), strict=True)]
    if len(sums) < MIN_SPEAKERS:
        raise UserError(
            what, f"{len(sums)} speakers are too few, at least {MIN_SPEAKERS} needed: leave --by-speaker out"
        )
    return [(a, b) for a, b, _ in sums.values()], [count for _, _, count in sums.values()]


def _errors(hypothesis: Hypothesis) -> int:
    return hypothesis["substitutions"] + hypothesis["deletions"] + hypothesis["insertions"]
