"""Metrics files: parts merge by step, and the later attempt wins."""

from pathlib import Path

from foldray.results.metrics import read_metrics, write_metrics


def test_metrics_parts_merge_by_step_and_the_later_attempt_wins(tmp_path: Path) -> None:
    run = str(tmp_path)
    write_metrics(run, "2026a", [{"step": 1, "by": "a"}, {"step": 2, "by": "a"}])
    write_metrics(run, "2026a", [{"step": 3, "by": "a"}])
    write_metrics(run, "2026b", [{"step": 3, "by": "b"}, {"step": 4, "by": "b"}])
    assert [(r["step"], r["by"]) for r in read_metrics(run)] == [(1, "a"), (2, "a"), (3, "b"), (4, "b")]
