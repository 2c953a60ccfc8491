"""The epoch plan: every utterance once, a pure function of (index, seed, epoch)."""

import numpy as np
import pytest

from foldray.data.epoch import plan_epoch, plan_scoring
from foldray.data.manifest import SplitIndex
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
        ids=[f"u{i}" for i in range(count)],
        shard=shard.astype(np.int32),
        row_group=(group % per_shard).astype(np.int32),
        row=(np.arange(count) % per_group).astype(np.int32),
        num_samples=ordered,
        num_labels=np.full(count, 3, dtype=np.int32),
    )


@pytest.fixture
def index() -> SplitIndex:
    lengths = np.random.default_rng(0).integers(16_000, 96_000, 500)
    return index_of(lengths.tolist())


def flat(plan: list[list[np.ndarray]]) -> list[int]:
    return [int(i) for step in plan for batch in step for i in batch]


@pytest.mark.parametrize("epoch", range(3))
@pytest.mark.parametrize("shortest_first", [False, True])
def test_every_utterance_once(index: SplitIndex, epoch: int, shortest_first: bool) -> None:
    plan = plan_epoch(index, seed=1, epoch=epoch, max_duration=30, per_step=3, shortest_first=shortest_first)
    assert sorted(flat(plan.steps)) == list(range(500))
    assert all(len(step) == 3 for step in plan.steps[:-1])
    assert 1 <= len(plan.steps[-1]) <= 3


def test_the_same_arguments_give_the_same_plan_and_others_another(index: SplitIndex) -> None:
    plans = [
        flat(plan_epoch(index, seed=seed, epoch=epoch, max_duration=30, per_step=2).steps)
        for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


def test_which_utterances_share_a_batch_changes_between_epochs(index: SplitIndex) -> None:
    first, second = (
        {
            frozenset(batch.tolist())
            for step in plan_epoch(index, seed=1, epoch=e, max_duration=30, per_step=2).steps
            for batch in step
        }
        for e in (0, 1)
    )
    assert len(first & second) < 0.1 * len(first)


def test_padded_audio_stays_within_the_limit_and_padding_is_small(index: SplitIndex) -> None:
    plan = plan_epoch(index, seed=1, epoch=0, max_duration=30, per_step=2)
    batches = [batch for step in plan.steps for batch in step]
    padded = [int(index.num_samples[batch].max()) * len(batch) for batch in batches]
    assert max(padded) <= 30 * 16_000
    assert 1 - index.num_samples.sum() / sum(padded) < 0.05


def test_shortest_first_ascends(index: SplitIndex) -> None:
    plan = plan_epoch(index, seed=1, epoch=0, max_duration=30, per_step=1, shortest_first=True)
    longest = [int(index.num_samples[step[0]].max()) for step in plan.steps]
    assert longest == sorted(longest)


def test_an_utterance_longer_than_a_batch_is_named(index: SplitIndex) -> None:
    with pytest.raises(UserError, match=r"batch.max_duration: utterance 'u499' has 6.0 s"):
        plan_epoch(index, seed=1, epoch=0, max_duration=5, per_step=2)


def test_scoring_takes_everything_longest_first(index: SplitIndex) -> None:
    batches = plan_scoring(index, 30)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(500))
    longest = [int(index.num_samples[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
