"""Nodes and processes that go and come, all in copies of one run that nobody disturbs.

Fewer workers and more again have the same losses; SIGKILL of a worker and of a raylet leaves the same weights, and so
does a node that is drained, which costs no work. The driver is killed in stages/test_pipeline.py.
`python -m tests.support.chaos` kills all three more often, each in a run of its own; docs/CHAOS.md is its table.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foldray.training.fencing import Attempt
from foldray.training.run_folder import whole_checkpoints
from tests.support.chaos import (
    RECIPE,
    Kill,
    Machines,
    Reference,
    Training,
    carry_out,
    cluster,
    group_of,
    make_reference,
    timeless,
)

pytestmark = [pytest.mark.ray, pytest.mark.soak]

VALIDATED = 57
"""A step with a validation and a checkpoint, behind all that happens and on no test's grid of checkpoints."""
GRID = 24
"""Steps between the checkpoints of the run that is killed: one that a notice asks for lies between them."""
# Training must last longer than Ray needs to see a node come; no other checkpoint but those that a test asks for.
LONG = [
    *RECIPE, "model.config.hidden_size=128", "model.config.intermediate_size=512",
    "optim.epochs=null", "optim.steps=60", f"valid.every_steps={VALIDATED}", "checkpoint.every_steps=1000",
]  # fmt: skip


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two nodes at first; every test asks for as many as it needs."""
    with cluster(2) as machines:
        yield machines


@pytest.fixture(scope="module")
def fixed(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Two workers from the beginning to the end."""
    return make_reference(machines, tmp_path_factory.mktemp("fixed"), LONG, 3.0)


def test_two_workers_one_and_two_again_take_every_step_once(
    machines: Machines, fixed: Reference, tmp_path: Path
) -> None:
    machines.have(2)
    command, run = fixed.again_in(tmp_path / "store")
    before = len(machines.groups())
    elastic = ["scale.workers=[1,2]", "scale.elastic_resize_monitor_interval_s=2", "checkpoint.every_steps=5"]
    training = Training(machines, tmp_path, *command, *elastic)
    try:
        training.wait_until(lambda: training.step > 6, "a first checkpoint")
        first = group_of(run)
        machines.remove(machines.node_of(machines.groups()[-1][1]))
        training.wait_until(lambda: group_of(run) != first, "a worker alone")
        second = group_of(run)
        training.wait_until(lambda: second in {found.attempt for found in whole_checkpoints(run)}, "its checkpoint")
        machines.add()
        training.wait_until(lambda: group_of(run) != second, "two workers again")
        assert training.finish()["step"] == fixed.step
    finally:
        training.kill()
    assert [len(group) for group in machines.groups()[before:]] == [2, 1, 2]
    assert {name[:9] for name in parts(run)} >= {str(Attempt(1, group)) for group in (1, 2, 3)}, "each took steps"
    ours, theirs = timeless(run), timeless(fixed.run)
    assert [record["step"] for record in ours] == list(range(1, fixed.step + 1))
    assert [record["audio_seconds"] for record in ours] == [record["audio_seconds"] for record in theirs]
    furthest = max(
        abs(our["ctc"][depth] / their["ctc"][depth] - 1)
        for our, their in zip(ours, theirs, strict=True)
        for depth in their["ctc"]
    )
    # With two micro-batches in a step it is zero: one worker adds the same two gradients.
    print(f"losses differ by {furthest:.2g} at most")
    assert furthest < 1e-4


def parts(run: str) -> list[str]:
    return sorted(path.name for path in (Path(run) / "metrics").iterdir())


def test_a_run_survives_a_killed_worker_a_drained_node_and_a_killed_raylet_bit_equal(
    machines: Machines, fixed: Reference, tmp_path: Path
) -> None:
    machines.have(4)
    kills = [
        Kill(1, "worker", rank=0, step=GRID, moment=0.0, in_upload=True),
        Kill(2, "node", rank=1, step=GRID + 3, moment=0.0, in_upload=False),
        Kill(3, "raylet", rank=1, step=2 * GRID + 2, moment=0.5, in_upload=False),
    ]
    often = [*fixed.arguments, f"checkpoint.every_steps={GRID}", "scale.max_failures=3"]
    rows = carry_out(kills, machines, replace(fixed, arguments=often), tmp_path)
    assert [row["different"] for row in rows] == [[], [], []]
    worker, node, raylet = (row["resumed_from"] for row in rows)
    assert worker in (0, GRID)
    assert GRID < node < 2 * GRID, "it went on from the checkpoint that the notice had made"
    assert raylet in (2 * GRID, VALIDATED), "a worker may outlive its raylet for a moment"
