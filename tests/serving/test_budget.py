"""The choice of a depth for a latency: pure arithmetic on costs and load."""

import pytest

from foldray.errors import UserError
from foldray.serving.budget import Costs, Load, Speed, deepest_in_time, fit_costs, parse_latency

COSTS = Costs(batch=0.01, audio=0.002, block=0.001)
DEPTHS = (4, 8, 12)


def chosen(*, lengths: list[float], slack: float = 0.3, load: float = 0.0, fixed: int | None = None) -> int:
    return deepest_in_time(Speed(COSTS), DEPTHS, lengths, [fixed, *[None] * (len(lengths) - 1)], slack, 0.3, load)


def test_an_idle_server_runs_the_deepest() -> None:
    assert chosen(lengths=[10.0]) == 12


def test_more_audio_or_less_time_takes_depth() -> None:
    assert chosen(lengths=[10.0] * 2) == 8
    assert chosen(lengths=[10.0] * 3) == 4
    assert chosen(lengths=[10.0], slack=0.15) == 8


def test_where_no_depth_is_fast_enough_it_is_the_shallowest() -> None:
    assert chosen(lengths=[60.0] * 4) == 4
    assert chosen(lengths=[1.0], slack=-1.0) == 4


def test_load_takes_depth_before_the_queue_grows() -> None:
    """At 80 s of audio a second, 12 blocks take 1.12 s of each second, 8 take 0.8, 4 take 0.48."""
    assert chosen(lengths=[1.0], load=30) == 12
    assert chosen(lengths=[1.0], load=80) == 8
    assert chosen(lengths=[1.0], load=120) == 4


def test_rows_that_named_their_depth_count_with_it() -> None:
    assert chosen(lengths=[10.0, 5.0], fixed=4) == 12
    assert chosen(lengths=[10.0, 5.0], fixed=12) == 8


def test_a_busy_machine_is_learnt_from_batches() -> None:
    speed = Speed(COSTS)
    plain = speed.seconds([10.0], [12])
    for _ in range(10):
        speed.learn([10.0], [12], 2 * plain)
    assert speed.seconds([10.0], [12]) == pytest.approx(2 * plain)
    assert speed.per_audio_second(8) == pytest.approx(2 * 0.010)
    for _ in range(40):
        speed.learn([10.0], [12], plain)
    assert speed.seconds([10.0], [12]) == pytest.approx(plain)


def test_costs_are_found_again_from_times() -> None:
    def run(lengths: list[float], depths: list[int]) -> float:
        return COSTS.batch + sum(
            length * (COSTS.audio + depth * COSTS.block) for length, depth in zip(lengths, depths, strict=True)
        )

    found = fit_costs(run, DEPTHS)  # type: ignore[arg-type]
    assert found.block == pytest.approx(COSTS.block)
    assert found.audio == pytest.approx(COSTS.audio, abs=COSTS.batch / 15)
    one = fit_costs(run, (6,))  # type: ignore[arg-type]
    assert one.audio + 6 * one.block == pytest.approx(COSTS.audio + 6 * COSTS.block, abs=COSTS.batch / 15)


def test_a_budget_is_a_time_with_its_unit() -> None:
    assert [parse_latency(text, "--latency") for text in ("300ms", " 1.5s", "10ms", None)] == [0.3, 1.5, 0.01, None]
    assert [parse_latency(text, "latency", unit="s") for text in ("0.3", "30", "300ms")] == [0.3, 30.0, 0.3]
    for text in ("300", "9ms", "601s", "s", "-1s", "1e3s", ""):
        with pytest.raises(UserError) as refused:
            parse_latency(text, "--latency")
        assert str(refused.value) == f"--latency: '{text}' is not a time from 10ms to 600s, such as 300ms or 1.5s"


def test_the_load_fades() -> None:
    load = Load()
    for i in range(300):
        load.add(2.0, i * 0.1)
    assert load.at(30.0) == pytest.approx(20.0, rel=0.05)
    assert load.at(60.0) < 0.01
