"""The epoch plan: every utterance once, a pure function of (index, seed, epoch)."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from foldray.data.epoch import EpochPlan, plan_epoch, plan_scoring, samples_at_speed
from foldray.data.manifest import SplitIndex
from foldray.data.packing import pack
from foldray.errors import UserError


def index_of(num_samples: list[int], per_group: int = 20, per_shard: int = 4) -> SplitIndex:
    """An index as preparation writes it: two duration buckets, several shards and row groups."""
    ordered = np.array(sorted(num_samples), dtype=np.int64)
    count = len(ordered)
    group = np.arange(count) // per_group
    shard = group // per_shard
    half = shard.max() // 2
    files = [f"shards/train-{int(s > half):02d}-{s:05d}.parquet" for s in range(shard.max() + 1)]
    return SplitIndex(
        corpus="nowhere",
        files=files,
        ids=pa.chunked_array([[f"u{i}" for i in range(count)]]),
        shard=shard.astype(np.int32),
        row_group=(group % per_shard).astype(np.int32),
        row=(np.arange(count) % per_group).astype(np.int32),
        num_samples=ordered,
        num_labels=np.full(count, 3, dtype=np.int32),
        num_repeats=np.zeros(count, dtype=np.int32),
    )


def batches_of(plan: EpochPlan) -> list[np.ndarray]:
    return [plan.batch(number) for number in range(plan.num_batches)]


@pytest.fixture
def index() -> SplitIndex:
    lengths = np.random.default_rng(0).integers(16_000, 96_000, 500)
    return index_of(lengths.tolist())


def flat(plan: EpochPlan) -> list[int]:
    return [int(i) for number in range(len(plan)) for batch in plan.step(number) for i in batch]


@pytest.mark.parametrize("epoch", range(3))
@pytest.mark.parametrize("shortest_first", [False, True])
def test_every_utterance_once(index: SplitIndex, epoch: int, shortest_first: bool) -> None:
    plan = plan_epoch(index, seed=1, epoch=epoch, max_duration=30, per_step=3, shortest_first=shortest_first)
    assert sorted(flat(plan)) == list(range(500))
    assert all(len(plan.step(number)) == 3 for number in range(len(plan) - 1))
    assert 1 <= len(plan.step(len(plan) - 1)) <= 3


def test_the_same_arguments_give_the_same_plan_and_others_another(index: SplitIndex) -> None:
    plans = [
        flat(plan_epoch(index, seed=seed, epoch=epoch, max_duration=30, per_step=2))
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


def test_which_utterances_share_a_batch_changes_between_epochs(index: SplitIndex) -> None:
    first, second = (
        {
            frozenset(batch.tolist())
            for batch in batches_of(plan_epoch(index, seed=1, epoch=e, max_duration=30, per_step=2))
        }
        for e in (0, 1)
    )
    assert len(first & second) < 0.1 * len(first)


def test_padded_audio_stays_within_the_limit_and_padding_is_small(index: SplitIndex) -> None:
    plan = plan_epoch(index, seed=1, epoch=0, max_duration=30, per_step=2)
    batches = batches_of(plan)
    padded = [int(index.num_samples[batch].max()) * len(batch) for batch in batches]
    assert max(padded) <= 30 * 16_000
    assert 1 - index.num_samples.sum() / sum(padded) < 0.05


def test_shortest_first_ascends(index: SplitIndex) -> None:
    plan = plan_epoch(index, seed=1, epoch=0, max_duration=30, per_step=1, shortest_first=True)
    longest = [int(index.num_samples[batch].max()) for batch in batches_of(plan)]
    assert longest == sorted(longest)


def test_an_utterance_longer_than_a_batch_is_named(index: SplitIndex) -> None:
    with pytest.raises(UserError, match=r"batch.max_duration: utterance 'u499' has 6.0 s"):
        plan_epoch(index, seed=1, epoch=0, max_duration=5, per_step=2)


def test_scoring_takes_everything_longest_first(index: SplitIndex) -> None:
    batches = plan_scoring(index, 30)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(500))
    longest = [int(index.num_samples[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.main
@pytest.mark.parametrize("per_step", [1, 3, 5])
def test_a_lattice_of_workers_and_cursors_sees_every_utterance_once(index: SplitIndex, per_step: int) -> None:
    """Workers 1 to 8, every cursor, three epochs: the union is the epoch, in the same order, however it is cut."""
    for epoch in range(3):
        plan = plan_epoch(index, seed=1, epoch=epoch, max_duration=30, per_step=per_step)
        steps = [[batch.tolist() for batch in plan.step(number)] for number in range(len(plan))]
        assert sorted(flat(plan)) == list(range(500))
        for world in range(1, 9):
            for cursor in range(len(plan)):
                shares = [list(plan.share(rank, world, cursor)) for rank in range(world)]
                assert interleaved(shares, plan, world, cursor) == steps[cursor:]
                for rank, share in enumerate(shares):
                    assert sorted(plan.positions_of(rank, world, cursor)) == sorted(np.concatenate(share))


def interleaved(shares: list[list[np.ndarray]], plan: EpochPlan, world: int, cursor: int) -> list[list[list[int]]]:
    """Steps as the workers' own streams make them up, without what idle ones run at weight zero."""
    streams = [iter(share) for share in shares]
    steps = []
    for number in range(cursor, len(plan)):
        size = len(plan.step(number))
        heard = {slot: next(streams[slot % world]).tolist() for slot in range(size)}
        for rank in range(size, world):
            next(streams[rank])
        steps.append([heard[slot] for slot in range(size)])
    return steps


def test_killed_at_fifty_points_and_resumed_the_ids_are_unchanged(index: SplitIndex) -> None:
    """Each life of a run goes on from its last checkpoint with another number of workers, into the third epoch."""
    rng = np.random.default_rng(3)
    plans = [plan_epoch(index, seed=4, epoch=epoch, max_duration=20, per_step=2) for epoch in range(3)]
    whole = [i for plan in plans for i in flat(plan)]
    places = [(epoch, step) for epoch, plan in enumerate(plans) for step in range(len(plan))]
    for killed in sorted(rng.choice(len(places), 50, replace=False)):
        checkpoint = killed - killed % 7
        before = [i for epoch, step in places[:checkpoint] for batch in plans[epoch].step(step) for i in batch]
        epoch, step = places[checkpoint]
        world = int(rng.integers(1, 9))
        after: list[int] = []
        for later in range(epoch, 3):
            again = plan_epoch(index, seed=4, epoch=later, max_duration=20, per_step=2)
            first = step if later == epoch else 0
            shares = [list(again.share(rank, world, first)) for rank in range(world)]
            after += [i for each in interleaved(shares, again, world, first) for batch in each for i in batch]
        assert before + after == whole


def test_scoring_holds_an_hour_of_a_long_split_at_a_time() -> None:
    long = index_of(np.random.default_rng(0).integers(16_000, 240_000, 3000).tolist())
    batches = plan_scoring(long, 60)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(3000))
    hours = (np.cumsum(long.num_samples) - long.num_samples) // (3600 * 16_000)
    assert hours.max() > 3
    heard = [sorted({int(hours[i]) for i in batch}) for batch in batches]
    assert heard == sorted(heard)
    assert all(len(each) == 1 for each in heard)


@pytest.mark.parametrize("per_step", [1, 4])
def test_every_row_group_is_held_by_one_worker_for_a_short_while(per_step: int) -> None:
    """A large corpus: no row group is read twice except where lanes meet, and few are held at any time."""
    rng = np.random.default_rng(0)
    index = index_of(rng.integers(16_000, 240_000, 40_000).tolist(), per_group=8, per_shard=20)
    plan = plan_epoch(index, seed=0, epoch=1, max_duration=60, per_step=per_step)
    groups = len(index.groups) - 1
    reads = 0
    for rank in range(per_step):
        spans: dict[int, list[int]] = {}
        for number, batch in enumerate(plan.share(rank, per_step)):
            for group in set(index.group_of(batch).tolist()):
                spans.setdefault(group, []).append(number)
        reads += len(spans)
        held = np.zeros(len(plan) + 1, dtype=int)
        for steps in spans.values():
            held[steps[0]] += 1
            held[steps[-1] + 1] -= 1
        assert np.cumsum(held).max() < 0.25 * groups / per_step
    assert reads < 1.02 * groups


def test_packing_is_the_greedy_loop_written_out() -> None:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 40, 3000)
    bounds = np.array([0, 1, 500, 520, 1999, 3000])
    starts = []
    for begin, end in itertools.pairwise(bounds):
        widest = count = 0
        for i in range(begin, end):
            widest = max(widest, lengths[i])
            if not count or widest * (count + 1) > 200:
                starts.append(i)
                widest, count = lengths[i], 0
            count += 1
    assert pack(lengths, bounds, 200).tolist() == [*starts, 3000]


def test_longest_first_moves_one_batch_only(index: SplitIndex) -> None:
    plans = [
        plan_epoch(index, seed=1, epoch=0, max_duration=30, per_step=1, longest_first=first) for first in (False, True)
    ]
    usual, moved = ([batch.tolist() for batch in batches_of(plan)] for plan in plans)
    assert int(index.num_samples[moved[0]].max()) == int(index.num_samples.max())
    assert sorted(usual) == sorted(moved)
    place = usual.index(moved[0])
    usual[0], usual[place] = usual[place], usual[0]
    assert usual == moved


def test_speeds_are_drawn_anew_each_epoch_and_the_plan_counts_with_them(index: SplitIndex) -> None:
    plans = [
        plan_epoch(index, seed=1, epoch=e, max_duration=6.3, per_step=2, speeds=(0.9, 1.0, 1.1)) for e in (0, 0, 1)
    ]
    assert plans[0].speed is not None
    assert plans[1].speed is not None
    assert plans[2].speed is not None
    assert np.array_equal(plans[0].speed, plans[1].speed)
    assert not np.array_equal(plans[0].speed, plans[2].speed)
    for factor in (0.9, 1.0, 1.1):
        members = plans[0].speed == factor
        assert 0.2 < members.mean() < 0.5
        assert np.array_equal(plans[0].num_samples[members], samples_at_speed(index.num_samples[members], factor))
    padded = [int(plans[0].num_samples[batch].max()) * len(batch) for batch in batches_of(plans[0])]
    assert max(padded) <= 6.3 * 16_000, "what would fit no batch when slowed down keeps its speed"
    assert sorted(flat(plans[0])) == list(range(500))
