"""SIGKILL of a worker, of a raylet and of the driver, one after the other in one run: the weights of a quiet one.

`python -m tests.chaos` kills more, each in a run of its own; docs/CHAOS.md is its table.
"""

from pathlib import Path

import pytest

from tests.chaos import EVERY, MINUTES, RECIPE, Kill, carry_out, cluster, make_reference

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


def test_a_run_survives_the_kill_of_a_worker_a_raylet_and_the_driver_bit_equal(tmp_path: Path) -> None:
    kills = [
        Kill(1, "worker", rank=0, step=EVERY, moment=0.0, in_upload=True),
        Kill(2, "raylet", rank=1, step=2 * EVERY + 2, moment=0.5, in_upload=False),
        Kill(3, "driver", rank=0, step=4 * EVERY + 2, moment=0.5, in_upload=False),
    ]
    with cluster(3) as machines:
        reference = make_reference(machines, tmp_path, RECIPE, MINUTES)
        rows = carry_out(kills, machines, reference, tmp_path)
    assert [row["different"] for row in rows] == [[], [], []]
    # A worker outlives its raylet for a moment, so a run may go on from a little behind the step of the kill.
    resumed = [row["resumed_from"] for row in rows]
    assert resumed == sorted(resumed)
    assert resumed[0] <= EVERY < 2 * EVERY <= resumed[1]
    assert 4 * EVERY <= resumed[2] < reference.step
