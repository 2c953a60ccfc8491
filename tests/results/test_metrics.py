"""Metrics files: parts merge by step, and the later attempt wins."""

from pathlib import Path

from foldray.results.metrics import Record, read_metrics, write_metrics


def test_metrics_parts_merge_by_step_and_the_later_attempt_wins(tmp_path: Path) -> None:
    run = str(tmp_path)
    write_metrics(run, "2026a", [step(1, loss=1.0), step(2, loss=1.0)])
    write_metrics(run, "2026a", [step(3, loss=1.0)])
    write_metrics(run, "2026b", [step(3, loss=2.0), step(4, loss=2.0)])
    assert [(r["step"], r["loss"]) for r in read_metrics(run)] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def step(number: int, loss: float) -> Record:
    return {"step": number, "seconds": 0.5, "audio_seconds": 8.0, "loss": loss}
