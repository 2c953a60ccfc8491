"""`python -m benchmarks ingest`: batches per second into a model that does nothing, next to a bare loop.

    ours    the epoch plan, shards read by row group, decoding and features, ahead of the consumer
    bound   the same rows already in memory: soundfile and the stock extractor, one after the other

Both use one thread and the features of recipe an4. The plan's padding is measured for three distributions of lengths,
our memory for the corpus and for one ten times as long.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import BenchmarkResult, Figures, check_extras, run_side

if TYPE_CHECKING:
    from foldray.data.epoch import EpochPlan
    from foldray.data.manifest import SplitIndex
    from foldray.data.stream import BatchLoader

MAX_DURATION = 60.0
HOURS = 0.5
GROWTH = 10


def bench_ingest(
    rounds: int = 3, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> BenchmarkResult:
    """Batches per second of both sides on half an hour of built-in speech, and padding and memory of ours."""
    check_extras("psutil", "espeakng_loader")
    with tempfile.TemporaryDirectory() as folder:
        corpus = _prepared(folder, HOURS)
        sides: dict[str, list[Figures]] = {"ours": [], "bound": []}
        for number in range(rounds):
            for side, measured in sides.items():
                measured.append(run_side("benchmarks.ingest", side, corpus))
            on_progress(number + 1, rounds + 1)
        longer = run_side("benchmarks.ingest", "ours", _repeated(corpus, f"{folder}/longer"))
        on_progress(rounds + 1, rounds + 1)
    ours, bound = (_median(measured) for measured in sides.values())
    return {
        "name": "ingest",
        "ours": {**ours, **{f"padding, {name}": share for name, share in _paddings().items()}},
        "peer": {f"bound, {key}": value for key, value in bound.items()},
        "ratio": {
            "ours to bound, batches per second": ours["batches_per_second"] / bound["batches_per_second"],
            f"memory of {GROWTH} times the corpus to once": longer["peak_bytes"] / ours["peak_bytes"],
        },
        "shape": f"{HOURS:g} h, {MAX_DURATION:g} s of padded audio per batch, 80 mel bins, {rounds} rounds",
    }


def _median(measured: list[Figures]) -> Figures:
    ordered = sorted(measured, key=lambda values: values["batches_per_second"])
    return ordered[len(ordered) // 2]


def _prepared(folder: str, hours: float) -> str:
    from foldray.config.corpus import CorpusSpec
    from foldray.data.builtin import write_builtin_corpus
    from foldray.data.corpora import find_corpus
    from foldray.data.prepare import prepare

    voices = Path(folder, "voices")
    write_builtin_corpus(voices, train_minutes=hours * 60, test_minutes=1)
    spec = CorpusSpec(path=str(voices), splits=("train",), valid_fraction=0.0)
    return prepare(find_corpus(spec, folder), spec, folder)[0]


def _repeated(corpus: str, folder: str) -> str:
    """A prepared corpus `GROWTH` times as long: the same shards under other names, and with other ids."""
    import shutil

    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from foldray.data.manifest import read_manifest
    from foldray.storage.layout import PreparedCorpus

    manifest = read_manifest(corpus)
    index = pq.read_table(PreparedCorpus(corpus).index)
    Path(folder, "shards").mkdir(parents=True)
    shards, tables = [], []
    for copy in range(GROWTH):
        for shard in manifest.shards:
            file = shard.file.replace(".parquet", f"{copy:02d}.parquet")
            shutil.copyfile(f"{corpus}/{shard.file}", f"{folder}/{file}")
            shards.append(shard.model_copy(update={"file": file}))
        number = pa.scalar(copy * len(manifest.shards), pa.int32())
        moved = index.set_column(2, "shard", pc.add(index["shard"], number))
        tables.append(moved.set_column(0, "id", pc.binary_join_element_wise(moved["id"], str(copy), "-")))
    pq.write_table(pa.concat_tables(tables), PreparedCorpus(folder).index)
    grown = manifest.model_copy(update={"shards": shards})
    Path(PreparedCorpus(folder).manifest).write_text(grown.model_dump_json())
    return folder


def _paddings() -> dict[str, float]:
    """Share of padding in a plan for lengths distributed as in LibriSpeech, with batch sizes of GPU recipes."""
    import pyarrow as pa

    from benchmarks.synthetic import synthetic_index
    from foldray.data.epoch import plan_epoch
    from foldray.data.manifest import SplitIndex

    files, table = synthetic_index(100_000)
    names = ("shard", "row_group", "row", "num_samples", "num_labels", "num_repeats")
    columns = {name: table[name].to_numpy() for name in names}
    ids: pa.ChunkedArray = table["id"]
    index = SplitIndex("", files, ids, **columns)
    plans = {seconds: plan_epoch(index, seed=0, epoch=1, max_duration=seconds, per_step=8) for seconds in (60, 200)}
    return {f"LibriSpeech's lengths, {seconds} s per batch": plan.padding for seconds, plan in plans.items()}


# --- The two sides ----------------------------------------------------------------------------------


def _loader(corpus: str) -> "tuple[BatchLoader, SplitIndex]":
    import torch

    from foldray.config.recipes import load_recipe
    from foldray.data.manifest import read_index, read_manifest
    from foldray.data.stream import BatchLoader
    from foldray.models.families import FAMILIES
    from foldray.models.stock_config import stock_config

    torch.set_num_threads(1)
    spec = load_recipe("an4").model
    manifest = read_manifest(corpus)
    config = stock_config(spec, 1, len(manifest.tokenizer))
    model = FAMILIES[spec.family].model_class(config)
    index = read_index(corpus, manifest, "train")
    return BatchLoader(index, model, manifest.tokenizer, None, 0), index


def _plan(index: "SplitIndex") -> "EpochPlan":
    from foldray.data.epoch import plan_epoch

    return plan_epoch(index, seed=0, epoch=0, max_duration=MAX_DURATION, per_step=2)


def _result(batches: int, began: float, started: float) -> dict[str, float]:
    seconds = time.perf_counter() - started
    return {"batches_per_second": batches / seconds, "seconds": seconds, "startup_s": started - began}


def _ours(corpus: str) -> dict[str, float]:
    began = time.perf_counter()
    loader, index = _loader(corpus)
    plan = _plan(index)
    loader.load(plan.batch(0), 0)  # the first call of anything is slow
    started = time.perf_counter()
    count = sum(1 for _ in loader.share_ahead(plan, 0, 1))
    return {**_result(count, began, started), "padding, built-in corpus": plan.padding}


def _bound(corpus: str) -> dict[str, float]:
    import io

    import soundfile
    import torch

    began = time.perf_counter()
    loader, index = _loader(corpus)
    plan = _plan(index)
    loader.load(plan.batch(0), 0)
    planned = [loader.read(plan.batch(number)) for number in range(plan.num_batches)]
    extractor, tokenizer = loader.extractor, loader.tokenizer
    started = time.perf_counter()
    for rows in planned:
        waveforms = [soundfile.read(io.BytesIO(row["audio"]), dtype="float32")[0] for row in rows]
        extractor(waveforms, sampling_rate=16_000, padding=True, return_attention_mask=True, return_tensors="pt")
        torch.nn.utils.rnn.pad_sequence([torch.tensor(tokenizer.encode(row["text"])) for row in rows], batch_first=True)
    return _result(len(planned), began, started)


if __name__ == "__main__":
    sides: dict[str, Callable[[str], dict[str, float]]] = {"ours": _ours, "bound": _bound}
    print(json.dumps(sides[sys.argv[1]](sys.argv[2])))
