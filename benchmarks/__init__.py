"""Benchmarks, each next to a peer in one run; the ratios are what counts."""

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
    on_progress: Callable[[int, int], None],
) -> BenchmarkResult:
    """Run the benchmark `name`. Raises UserError for an unknown name."""
    if name not in BENCHMARKS:
        raise UserError(name, f"is not a benchmark; use {', '.join(BENCHMARKS)}")
    if name == "joint-step":
        from benchmarks.joint_step import bench_joint_step

        return bench_joint_step(rounds, on_progress=on_progress)
    if name == "one-cycle":
        from benchmarks.one_cycle import bench_one_cycle

        return bench_one_cycle(rounds, on_progress=on_progress)
    if name == "resume":
        from benchmarks.resume import bench_resume

        return bench_resume(utterances, with_peer=with_peer, on_progress=on_progress)
    if name == "prepare":
        from benchmarks.prepare import bench_prepare

        return bench_prepare(hours, on_progress=on_progress)
    if name == "ingest":
        from benchmarks.ingest import bench_ingest

        return bench_ingest(rounds, on_progress=on_progress)
    if name == "consumers":
        from benchmarks.consumers import bench_consumers

        return bench_consumers(on_progress=on_progress)
    if name == "transcribe":
        from benchmarks.transcribe import bench_transcribe

        return bench_transcribe(rounds, 60 * min(hours, 1.0), on_progress=on_progress)
    if name == "results":
        from benchmarks.results import bench_results

        return bench_results(rounds, on_progress=on_progress)
    if name == "serve":
        from benchmarks.serve import bench_serve

        return bench_serve(rounds, on_progress=on_progress)
    from benchmarks.train import bench_train

    return bench_train(rounds, on_progress=on_progress)
