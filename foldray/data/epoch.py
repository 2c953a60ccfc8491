"""The epoch plan: which utterances make up every optimiser step, as a pure function of (index, random seed, epoch).

It does not depend on the workers, their number, or what ran before. So a run resumes at (epoch, step) by computing the
plan again, and any number of workers goes through the same steps.

A step takes one micro-batch from each of `per_step` lanes. A lane is a stretch of the corpus that no other lane reads:
however the lanes are assigned to workers, every row group is read once an epoch and dropped soon after (only the row
groups of the window where two lanes meet are read by both).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foldray.config.corpus import SAMPLE_RATE
from foldray.data.manifest import SplitIndex
from foldray.data.packing import Ints, bounds_of, pack, ranges, sorted_within
from foldray.errors import UserError

MicroBatch = npt.NDArray[np.int64]
"""Positions in the index, one for each utterance."""

WINDOW_SECONDS, WINDOW_BATCHES = 1600, (8, 16)
"""Audio of a window of row groups, and the fewest and most micro-batches it may contain. Larger windows give less
padding and take more memory."""

MIXED_WINDOWS = 8
"""Windows that alternate at any time, over all lanes, so that neighbouring steps differ in row groups and lengths."""

JITTER = 0.05
"""Lengths are multiplied by up to 1 ± this before they are sorted: neighbours change from epoch to epoch, and padding
stays below it."""

SCORING_SECONDS = 3600
"""Audio that is sorted by length at once when scoring, which bounds the memory."""

_SPEED_STREAM = 1
"""Separates the random numbers of the speeds from those of the order."""


@dataclass(frozen=True)
class EpochPlan:
    """All steps of one epoch, as arrays: any step is found without iterating over those before it.

    Every step has `per_step` micro-batches; only the last one may have fewer.

    Attributes:
        epoch: Number of the epoch, from 0.
        positions: Positions in the index, every utterance once, micro-batch by micro-batch, (N,).
        starts: Where each micro-batch begins in `positions`, and N, (M + 1,).
        per_step: Micro-batches of a step.
        num_samples: Samples of each utterance at its speed, by position in the index, (N,).
        speed: Speed factor of each utterance, (N,); None if all are 1.
    """

    epoch: int
    positions: Ints
    starts: Ints
    per_step: int
    num_samples: Ints
    speed: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return -(-self.num_batches // self.per_step)

    @property
    def num_batches(self) -> int:
        """Number of micro-batches."""
        return len(self.starts) - 1

    @property
    def padding(self) -> float:
        """Share of the padded audio that is padding."""
        widest = np.maximum.reduceat(self.num_samples[self.positions], self.starts[:-1])
        return 1 - float(self.num_samples.sum()) / float((widest * np.diff(self.starts)).sum())

    def batch(self, number: int) -> MicroBatch:
        """A micro-batch by its number in the epoch."""
        return self.positions[self.starts[number] : self.starts[number + 1]]

    def step(self, number: int) -> list[MicroBatch]:
        """The micro-batches of one step, lane by lane."""
        first = number * self.per_step
        return [self.batch(i) for i in range(first, min(first + self.per_step, self.num_batches))]

    def share(self, rank: int, world: int, first: int = 0) -> Iterator[MicroBatch]:
        """The micro-batches of one of `world` workers from step `first` on; of a step without any for it, the first."""
        for number in range(first, len(self)):
            batches = self.step(number)
            yield from batches[rank::world] or batches[:1]

    def positions_of(self, rank: int, world: int, first: int = 0) -> Ints:
        """Positions of the utterances of `share`, in any order."""
        batches = np.arange(first * self.per_step, self.num_batches)
        lane = batches % self.per_step
        mine = batches[lane % world == rank if rank < self.per_step else lane == 0]
        last = (len(self) - 1) * self.per_step
        if self.num_batches - last <= rank < self.per_step:
            mine = np.append(mine, last)  # which it runs with weight zero in the last step
        return self.positions[ranges(self.starts[mine], np.diff(self.starts)[mine])]


def plan_epoch(
    index: SplitIndex,
    *,
    seed: int,
    epoch: int,
    max_duration: float,
    per_step: int,
    shortest_first: bool = False,
    longest_first: bool = False,
    speeds: tuple[float, ...] = (1.0,),
) -> EpochPlan:
    """Plan one epoch: every utterance once, packed to `max_duration` seconds of padded audio.

    Row groups are shuffled inside duration buckets (a shard has one bucket); windows of them are sorted by jittered
    length and packed; windows are shuffled and distributed over the lanes, where a few alternate.

    Args:
        index: The split.
        seed: Random seed of the run.
        epoch: Number of the epoch, from 0.
        max_duration: Seconds of padded audio in a micro-batch.
        per_step: Micro-batches of a step, which is also the number of lanes.
        shortest_first: Sort micro-batches from short to long instead.
        longest_first: Move the micro-batch with the longest audio to the front, so that a run that will be out of
            memory is so at once.
        speeds: Speed factors, one of which is drawn for each utterance.

    Raises:
        UserError: An utterance is longer than a micro-batch.
    """
    rng = np.random.default_rng([seed, epoch])
    longest = round(max_duration * SAMPLE_RATE)
    _check_fits(index, longest)
    num_samples, speed = _draw_speeds(index.num_samples, seed, epoch, longest, speeds)
    positions, windows = _windows(index, num_samples, _window_samples(longest), rng)
    jittered = num_samples[positions] * rng.uniform(1 - JITTER, 1 + JITTER, len(positions))
    positions = positions[sorted_within(jittered, windows)]
    starts = pack(num_samples[positions], windows, longest)
    window = np.searchsorted(windows, starts[:-1], side="right") - 1
    widest = np.maximum.reduceat(num_samples[positions], starts[:-1])
    order = _deal(window, len(windows) - 1, per_step, rng)
    if shortest_first:
        order = order[np.argsort(widest[order], kind="stable")]
    if longest_first:
        place = int(np.argmax(widest[order]))
        order[[0, place]] = order[[place, 0]]
    sizes = np.diff(starts)[order]
    positions = positions[ranges(starts[:-1][order], sizes)]
    return EpochPlan(epoch, positions, bounds_of(sizes), per_step, num_samples, speed)


def _check_fits(index: SplitIndex, longest: int) -> None:
    worst = int(index.num_samples.argmax())
    if index.num_samples[worst] > longest:
        seconds = index.num_samples[worst] / SAMPLE_RATE
        raise UserError(
            "batch.max_duration",
            f"utterance '{index.ids[worst]}' has {seconds:.1f} s, more than a micro-batch; raise it, or "
            "lower corpus.max_seconds",
        )


def speed_rate(factor: float) -> int:
    """The rate in Hz that audio at `factor` times its speed is interpreted at, before it is resampled to 16 kHz.

    A multiple of 50 Hz, which `audio.near_rate` leaves unchanged.
    """
    return 50 * round(factor * SAMPLE_RATE / 50)


def samples_at_speed(num_samples: Ints, factor: float) -> Ints:
    """Number of samples at a speed, rounded up as torchaudio's resampling does."""
    return -(-num_samples * SAMPLE_RATE // speed_rate(factor))


def _draw_speeds(
    num_samples: Ints, seed: int, epoch: int, longest: int, speeds: tuple[float, ...]
) -> tuple[Ints, npt.NDArray[np.float64] | None]:
    """Samples and speed of each utterance; one that would not fit a micro-batch at its speed keeps its original one."""
    if speeds == (1.0,):
        return num_samples, None
    rng = np.random.default_rng([seed, epoch, _SPEED_STREAM])
    drawn = rng.integers(len(speeds), size=len(num_samples), dtype=np.int8)
    changed, speed = num_samples.copy(), np.ones(len(num_samples))
    for number, factor in enumerate(speeds):
        members = np.flatnonzero(drawn == number)
        lengths = samples_at_speed(num_samples[members], factor)
        fits = lengths <= longest
        changed[members[fits]], speed[members[fits]] = lengths[fits], factor
    return changed, speed


def _window_samples(longest: int) -> int:
    fewest, most = WINDOW_BATCHES
    return max(fewest * longest, min(most * longest, WINDOW_SECONDS * SAMPLE_RATE))


def _windows(index: SplitIndex, num_samples: Ints, samples: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Positions (N,) by shuffled row group, and where windows of about `samples` samples begin, (W + 1,).

    All row groups of a window have the same duration bucket.
    """
    groups = index.groups
    bucket = index.bucket_of_shard[index.shard[groups[:-1]]]
    order = rng.permutation(len(bucket))
    order = order[np.argsort(bucket[order], kind="stable")]
    group_samples = np.add.reduceat(num_samples, groups[:-1])[order]
    bucket = bucket[order]
    opens = np.flatnonzero(np.diff(bucket, prepend=-1))
    samples_before = np.cumsum(group_samples) - group_samples
    in_bucket = samples_before - np.repeat(samples_before[opens], np.diff(np.append(opens, len(bucket))))
    number = in_bucket // samples
    first = np.flatnonzero((np.diff(number, prepend=-1) != 0) | (np.diff(bucket, prepend=-1) != 0))
    sizes = np.diff(groups)[order]
    positions = ranges(groups[:-1][order], sizes)
    return positions, np.append(bounds_of(sizes)[first], len(positions))


def _deal(window: Ints, num_windows: int, lanes: int, rng: np.random.Generator) -> Ints:
    """The order of micro-batches, given the window of each: entry i is step i // lanes of lane i % lanes."""
    rank = rng.permutation(num_windows)[window]
    in_turn = np.argsort(rank, kind="stable")
    steps = -(-len(window) // lanes)
    longer = len(window) - lanes * (steps - 1)  # lanes that have a micro-batch in the last step
    per_lane = np.where(np.arange(lanes) < longer, steps, steps - 1)
    lane = np.repeat(np.arange(lanes), per_lane)
    turn = rank[in_turn] + rng.uniform(0, max(1, MIXED_WINDOWS // lanes), len(window))
    dealt = in_turn[np.lexsort((turn, lane))]
    place = ranges(np.zeros(lanes, dtype=np.int64), per_lane) * lanes + lane
    order = np.empty_like(dealt)
    order[place] = dealt
    return order


def plan_scoring(index: SplitIndex, max_duration: float) -> list[MicroBatch]:
    """Micro-batches for scoring: every utterance once, packed to `max_duration` seconds of padded audio.

    Inside each hour of audio the longest utterances come first.
    """
    longest = max(round(max_duration * SAMPLE_RATE), int(index.num_samples.max()))
    hours = (np.cumsum(index.num_samples) - index.num_samples) // (SCORING_SECONDS * SAMPLE_RATE)
    positions = np.lexsort((-index.num_samples, hours))
    bounds = bounds_of(np.bincount(hours))
    starts = pack(index.num_samples[positions], bounds[np.diff(bounds, prepend=-1) > 0], longest)
    return [positions[begin:end] for begin, end in itertools.pairwise(starts)]
