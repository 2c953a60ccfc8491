"""Benchmarks, each next to a peer in one run; the ratios are what counts."""

import importlib
from collections.abc import Callable

from benchmarks.measure import BenchmarkResult
from foldray.errors import UserError

BENCHMARKS = (
    "joint-step", "one-cycle", "resume", "prepare", "ingest", "consumers", "train", "results", "serve", "transcribe",
)  # fmt: skip


def run_benchmark(
    name: str,
    *,
    rounds: int,
    hours: float,
    utterances: int,
    with_peer: bool,
    width: int,
    on_progress: Callable[[int, int], None],
) -> BenchmarkResult:
    """Run the benchmark `name`. Raises UserError for an unknown name."""
    if name not in BENCHMARKS:
        raise UserError(name, f"is not a benchmark; use {', '.join(BENCHMARKS)}")
    module = name.replace("-", "_")
    run = getattr(importlib.import_module(f"benchmarks.{module}"), f"bench_{module}")
    own: dict[str, dict[str, float | bool]] = {
        "resume": {"utterances": utterances, "with_peer": with_peer},
        "prepare": {"hours": hours},
        "consumers": {},
        "serve": {"rounds": rounds, "width": width},
        "transcribe": {"rounds": rounds, "minutes": 60 * min(hours, 1.0)},
    }
    result: BenchmarkResult = run(**own.get(name, {"rounds": rounds}), on_progress=on_progress)
    return result
