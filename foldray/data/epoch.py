"""The epoch plan: which utterances make up every optimiser step, as a pure function of (index, seed, epoch).

Workers, their number and what ran before have no say in it. So a run resumes at (epoch, step) by
computing the plan again, and any number of workers goes through the same steps.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foldray.data.manifest import SplitIndex
from foldray.errors import UserError
from foldray.spec import SAMPLE_RATE

MicroBatch = npt.NDArray[np.int64]
"""Positions in the index, one for each utterance."""

WINDOW = 16
"""Row groups of one bucket whose utterances are mixed: 16 minutes of audio at the default size."""

JITTER = 0.05
"""Lengths are sorted after a random stretch of up to this share: neighbours change from epoch to epoch,
padding stays below it."""


@dataclass(frozen=True)
class EpochPlan:
    """Steps of one epoch; each holds up to `per_step` micro-batches, only the last one fewer."""

    steps: list[list[MicroBatch]]


def plan_epoch(
    index: SplitIndex,
    *,
    seed: int,
    epoch: int,
    max_duration: float,
    per_step: int,
    shortest_first: bool = False,
) -> EpochPlan:
    """Every utterance once, packed to `max_duration` seconds of padded audio, in the order of (seed, epoch).

    Row groups are shuffled inside duration buckets (a shard has one bucket), windows of them are
    sorted by jittered length and packed, and the micro-batches of all buckets shuffled together.
    """
    rng = np.random.default_rng([seed, epoch])
    longest = int(max_duration * SAMPLE_RATE)
    _check_fits(index, longest)
    batches = [batch for window in _windows(index, rng) for batch in _pack(index, window, longest, rng)]
    order: list[int] = [int(i) for i in rng.permutation(len(batches))]
    if shortest_first:
        order.sort(key=lambda i: int(index.num_samples[batches[i]].max()))
    shuffled = [batches[i] for i in order]
    return EpochPlan([shuffled[i : i + per_step] for i in range(0, len(shuffled), per_step)])


def _check_fits(index: SplitIndex, longest: int) -> None:
    worst = int(index.num_samples.argmax())
    if index.num_samples[worst] > longest:
        seconds = index.num_samples[worst] / SAMPLE_RATE
        raise UserError(
            "batch.max_duration",
            f"utterance '{index.ids[worst]}' has {seconds:.1f} s, more than a whole micro-batch; raise it, "
            "or lower corpus.max_seconds",
        )


def _windows(index: SplitIndex, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Positions of the utterances of each window of shuffled row groups, bucket by bucket."""
    windows = []
    buckets = np.array([file.rsplit("-", 1)[0] for file in index.files])[index.shard]
    for bucket in np.unique(buckets):
        members = np.flatnonzero(buckets == bucket)
        groups = rng.permutation(np.unique(index.group_of_row[members]))
        for start in range(0, len(groups), WINDOW):
            windows.append(members[np.isin(index.group_of_row[members], groups[start : start + WINDOW])])
    return windows


def _pack(index: SplitIndex, window: npt.NDArray[np.int64], longest: int, rng: np.random.Generator) -> list[MicroBatch]:
    lengths = index.num_samples[window]
    ordered = window[np.argsort(lengths * rng.uniform(1 - JITTER, 1 + JITTER, len(window)), kind="stable")]
    batches: list[list[int]] = [[]]
    widest = 0
    for position in ordered:
        widest = max(widest, int(index.num_samples[position]))
        if batches[-1] and widest * (len(batches[-1]) + 1) > longest:
            batches.append([])
            widest = int(index.num_samples[position])
        batches[-1].append(int(position))
    return [np.array(batch, dtype=np.int64) for batch in batches if batch]


def plan_scoring(index: SplitIndex, max_duration: float) -> list[MicroBatch]:
    """Every utterance once, longest first, packed to `max_duration` seconds of padded audio."""
    longest = max(int(max_duration * SAMPLE_RATE), int(index.num_samples.max()))
    batches: list[list[int]] = [[]]
    for position in np.argsort(-index.num_samples, kind="stable"):
        if batches[-1] and int(index.num_samples[batches[-1][0]]) * (len(batches[-1]) + 1) > longest:
            batches.append([])
        batches[-1].append(int(position))
    return [np.array(batch, dtype=np.int64) for batch in batches]
