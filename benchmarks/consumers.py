"""`python -m benchmarks consumers`: how to feed many training workers without waits, in order and in bounded memory.

Consumers are actors without torch. Each takes its planned micro-batches in order and "trains" on each for a while (it
sleeps). Three ways of loading are compared:

    threads    a thread of the consumer's process decodes ahead (what foldray uses)
    tasks      Ray tasks anywhere in the cluster, a few ahead
    datasets   a Ray Data pipeline for each consumer, over windows of its plan

Every micro-batch is a minute of audio in FLAC, decoded for real.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.measure import BenchmarkResult, Figures, check_extras, memory_of_tree
from foldray.config.corpus import SAMPLE_RATE
from foldray.data.audio import decode_flac, encode_flac

UTTERANCES, SECONDS = 12, 5
AHEAD = 2
WINDOW = 8
"""Micro-batches of one pipeline of `datasets`, which keeps its whole input in memory."""

LONGEST = 480.0
"""Seconds after which a measurement is stopped."""

Row = dict[str, Any]


def bench_consumers(
    consumers: int = 64,
    batches: int = 16,
    step_seconds: float = 3.0,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchmarkResult:
    """Each way's worst and mean wait for a micro-batch, whether order was kept, and the memory of all processes."""
    from foldray.runtime.ray import start_ray

    check_extras("psutil")
    ray = start_ray()
    measured = {}
    for number, way in enumerate(WAYS):
        measured[way] = _measure(ray, way, consumers, batches, step_seconds)
        on_progress(number + 1, len(WAYS))
    ours = measured.pop("threads")
    return {
        "name": "consumers",
        "ours": {"threads": ours},
        "peer": measured,
        "ratio": {f"{way} to threads, time": values["seconds"] / ours["seconds"] for way, values in measured.items()},
        "shape": f"{consumers} consumers, {batches} minutes of audio each, {step_seconds:g} s per step, "
        f"so {batches * step_seconds:g} s where nobody waits",
    }


def _measure(ray: Any, way: str, consumers: int, batches: int, step_seconds: float) -> Figures:
    actor = ray.remote(num_cpus=0)(_Consumer)
    running = [actor.remote(way, rank, consumers) for rank in range(consumers)]
    ray.get([each.ready.remote() for each in running])
    idle = memory_of_tree()
    began = time.perf_counter()
    waiting = [each.consume.remote(batches, step_seconds) for each in running]
    peak = idle
    while ray.wait(waiting, num_returns=len(waiting), timeout=2.0)[1] and time.perf_counter() - began < LONGEST:
        peak = max(peak, memory_of_tree())
    done, unfinished = ray.wait(waiting, num_returns=len(waiting), timeout=0)
    seconds = time.perf_counter() - began
    waits = [each["waits"] for each in ray.get(done)]
    in_order = [each["in_order"] for each in ray.get(done)]
    for each in running:
        ray.kill(each)
    return {
        "seconds": seconds,
        "worst_wait_s": float(np.max(waits)) if waits else LONGEST,
        "mean_wait_s": float(np.mean(waits)) if waits else LONGEST,
        "unfinished": len(unfinished),
        "in_order": all(in_order) and not unfinished,
        "added_bytes": peak - idle,
    }


class _Consumer:
    def __init__(self, way: str, rank: int, world: int) -> None:
        self._way, self._rank, self._world = way, rank, world
        steps_T = np.random.default_rng(rank).normal(0, 1e-3, SECONDS * SAMPLE_RATE)
        self._flac = encode_flac(np.cumsum(steps_T).astype(np.float32))

    def ready(self) -> bool:
        return True

    def consume(self, batches: int, step_seconds: float) -> Row:
        plan = [{"number": self._rank + self._world * i, "flac": self._flac} for i in range(batches)]
        stream = WAYS[self._way](plan)
        waits, seen = [], []
        for _ in plan:
            began = time.perf_counter()
            row = next(stream)
            waits.append(time.perf_counter() - began)
            seen.append(int(row["number"]))
            time.sleep(step_seconds)
        return {"waits": waits, "in_order": seen == [row["number"] for row in plan]}


def _load(row: Row) -> Row:
    samples_BT = np.stack([decode_flac(row["flac"]) for _ in range(UTTERANCES)])
    return {"number": row["number"], "samples": samples_BT}


def _threads(plan: list[Row]) -> Iterator[Row]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        yield from _ahead(plan, lambda row: pool.submit(_load, row), lambda waiting: waiting.result())


def _tasks(plan: list[Row]) -> Iterator[Row]:
    import ray

    load = ray.remote(num_cpus=0.5)(_load)
    yield from _ahead(plan, load.remote, ray.get)


def _ahead(plan: list[Row], begin: Callable[[Row], Any], take: Callable[[Any], Row]) -> Iterator[Row]:
    waiting: list[Any] = []
    for row in plan:
        waiting.append(begin(row))
        if len(waiting) > AHEAD:
            yield take(waiting.pop(0))
    yield from map(take, waiting)


def _datasets(plan: list[Row]) -> Iterator[Row]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    for start in range(0, len(plan), WINDOW):
        rows = plan[start : start + WINDOW]
        yield from ray.data.from_items(rows, override_num_blocks=len(rows)).map(_load, num_cpus=0.5).iter_rows()


WAYS: dict[str, Callable[[list[Row]], Iterator[Row]]] = {"threads": _threads, "tasks": _tasks, "datasets": _datasets}
