"""`python -m benchmarks prepare`: hours of audio prepared per second, next to a bare loop and two peers.

    ours      foldray prepare: Ray Data, shards checked, described and written
    bound     two processes, each a bare loop: soundfile, torchaudio, the same Parquet
    datasets  Hugging Face datasets.map(num_proc=2), then to_parquet
    lhotse    cuts resampled and written to Shar, two jobs

Sides run one after the other on the same FLAC files, each with two processes of one thread. Start-up (interpreters,
imports, Ray) is reported separately; where a side starts its processes inside, a run over two utterances measures it.
Files are 22,050 Hz, so all sides resample. All sides are in this one file (over 250 lines), to be
compared.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.measure import BenchmarkResult, Figures, check_extras, run_side

if TYPE_CHECKING:
    from lhotse import MonoCut

    from foldray.config.corpus import CorpusSpec
    from foldray.data.shard import ShardRow
    from foldray.data.utterance import Utterance

SourceRow: TypeAlias = dict[str, Any]
"""A line of train.jsonl."""

SIDES = ("ours", "bound", "datasets", "lhotse")
PROCESSES = 2
SHARD_SECONDS = 15 * 60


def bench_prepare(
    hours: float = 10.0,
    *,
    folder: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchmarkResult:
    """Hours of audio per second of each side, on `hours` of built-in speech, written to `folder` if it is missing."""
    from foldray.data.builtin import write_builtin_corpus

    check_extras("datasets", "lhotse", "psutil", "espeakng_loader")
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(folder or scratch) / f"voices-{hours:g}h"
        if not (corpus / "test.jsonl").exists():
            write_builtin_corpus(corpus, train_minutes=hours * 60, test_minutes=1)
        measured = {}
        for number, side in enumerate(SIDES):
            with tempfile.TemporaryDirectory() as out:
                measured[side] = run_side("benchmarks.prepare", side, str(corpus), out)
            on_progress(number + 1, len(SIDES) + 1)
        _write_tenth(corpus, Path(scratch, "tenth"))
        with tempfile.TemporaryDirectory() as out:
            tenth = run_side("benchmarks.prepare", "ours", str(Path(scratch, "tenth")), out)
        on_progress(len(SIDES) + 1, len(SIDES) + 1)
    ours = measured.pop("ours")
    speed = ours["hours_per_second"]
    return {
        "name": "prepare",
        "ours": ours,
        "peer": {f"{side}, {key}": value for side, values in measured.items() for key, value in values.items()},
        "ratio": {
            **{
                f"ours to {side}, hours per second": speed / values["hours_per_second"]
                for side, values in measured.items()
            },
            "memory of the corpus to a tenth of it": ours["peak_bytes"] / tenth["peak_bytes"],
        },
        "shape": f"{ours['hours']:.1f} h of FLAC at 22,050 Hz to 16 kHz Parquet, {PROCESSES} processes of one thread",
    }


def _write_tenth(corpus: Path, folder: Path) -> None:
    """A corpus of every tenth utterance of another."""
    folder.mkdir()
    rows = _rows(str(corpus))[::10]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _result(began: float, started: float, hours: float, **stages: float) -> Figures:
    seconds = time.perf_counter() - started
    return {
        "hours_per_second": hours / seconds,
        "seconds": seconds,
        "startup_s": started - began,
        "hours": hours,
        **stages,
    }


def _rows(corpus: str) -> list[SourceRow]:
    lines = Path(corpus, "train.jsonl").read_text().splitlines()
    return [{**row, "audio": f"{corpus}/{row['audio']}"} for row in map(json.loads, lines)]


# --- Ours -------------------------------------------------------------------------------------------


def _ours(corpus: str, out: str) -> Figures:
    from foldray.config.corpus import CorpusSpec
    from foldray.data.corpora import find_corpus
    from foldray.data.prepare import prepare
    from foldray.runtime.ray import start_ray

    began = time.perf_counter()
    ray = start_ray(PROCESSES)
    ray.data.range(PROCESSES, override_num_blocks=PROCESSES).map(_warm_row).materialize()
    started = time.perf_counter()
    spec = CorpusSpec(path=corpus, splits=("train",), valid_fraction=0.0)
    found = find_corpus(spec, out)
    listed = time.perf_counter()
    _, manifest = prepare(found, spec, out, cpus=PROCESSES)
    finished = time.perf_counter()
    stages = {"stage_find_s": listed - started, "stage_shards_s": finished - listed}
    return {**_result(began, started, manifest.hours, **stages), **_inside(found.utterances[:200], spec)}


def _warm_row(row: dict[str, int]) -> dict[str, int]:
    _warm()
    time.sleep(1.0)  # so that each process gets one row
    return row


def _warm() -> None:
    import numpy as np
    import torch

    from foldray.data.audio import encode_flac, resample

    torch.set_num_threads(1)
    encode_flac(resample(np.zeros(22_050, dtype=np.float32), 22_050))


def _inside(utterances: "list[Utterance]", spec: "CorpusSpec") -> Figures:
    """Milliseconds of each stage of a shard's task for a minute of audio, in one process."""
    import torch

    from foldray import storage
    from foldray.data import audio
    from foldray.data.shard import ShardTask, encode_shard

    torch.set_num_threads(1)
    _warm()
    clock = time.perf_counter
    reading = decoding = encoding = 0.0
    minutes = 0.0
    for utterance in utterances:
        t0 = clock()
        data = storage.read_bytes(utterance.audio)
        t1 = clock()
        samples_T = audio.decode(data, utterance.duration)
        t2 = clock()
        audio.encode_flac(samples_T)
        t3 = clock()
        reading, decoding, encoding = reading + t1 - t0, decoding + t2 - t1, encoding + t3 - t2
        minutes += len(samples_T) / 16_000 / 60
    began = clock()
    encode_shard(ShardTask("shards/train-00-00000.parquet", "train", utterances, spec))
    rest = clock() - began - reading - decoding - encoding
    stages = {"read": reading, "decode_resample": decoding, "encode": encoding, "check_label_write": rest}
    return {f"ms_per_minute_{stage}": 1000 * seconds / minutes for stage, seconds in stages.items()}


# --- The bound and the peers ------------------------------------------------------------------------


def _bound(corpus: str, out: str) -> Figures:
    from multiprocessing import get_context

    began = time.perf_counter()
    with get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(_warm_number, range(PROCESSES), chunksize=1)
        started = time.perf_counter()
        rows = _rows(corpus)
        parts: list[list[SourceRow]] = [[]]
        filled = 0.0
        for row in rows:
            if filled + row["duration"] > SHARD_SECONDS:
                parts.append([])
                filled = 0.0
            parts[-1].append(row)
            filled += row["duration"]
        seconds = pool.starmap(_bare_shard, [(part, f"{out}/{i}.parquet") for i, part in enumerate(parts)], chunksize=1)
        return _result(began, started, sum(seconds) / 3600)


def _warm_number(_number: int) -> None:
    _warm()
    time.sleep(1.0)


def _bare_row(row: SourceRow) -> "ShardRow":
    import soundfile
    import torch

    from foldray.data.audio import _resampler, encode_flac

    torch.set_num_threads(1)
    samples_TC, rate = soundfile.read(row["audio"], dtype="float32", always_2d=True)
    mono_T = _resampler(rate)(torch.from_numpy(samples_TC.mean(axis=1))).numpy()
    audio = encode_flac(mono_T)
    text, speaker = row["text"], row["speaker"]
    return {
        "id": row["id"], "audio": audio, "num_samples": len(mono_T), "text": text, "speaker": speaker,
        "language": "en", "source": row["audio"],
    }  # fmt: skip


def _bare_shard(rows: list[SourceRow], file: str) -> float:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from foldray.data.manifest import SHARD_SCHEMA

    table = pa.Table.from_pylist([_bare_row(row) for row in rows], SHARD_SCHEMA)
    codecs = {name: "none" if name == "audio" else "zstd" for name in SHARD_SCHEMA.names}
    pq.write_table(table, file, row_group_size=20, compression=codecs, use_dictionary=["speaker", "language"])
    return float(pa.compute.sum(table["num_samples"]).as_py()) / 16_000


def _datasets(corpus: str, out: str) -> Figures:
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = Path(out, "cache")
    _warm()
    rows = _rows(corpus)

    def run(name: str, members: list[SourceRow]) -> float:
        listed = datasets.Dataset.from_list(members)
        options: dict[str, Any] = {"num_proc": PROCESSES, "remove_columns": listed.column_names}
        prepared = listed.map(_bare_row, cache_file_name=f"{out}/{name}.arrow", writer_batch_size=100, **options)
        prepared.to_parquet(f"{out}/{name}.parquet", batch_size=20)
        return float(sum(prepared["num_samples"])) / 16_000 / 3600

    return _without_startup(run, rows)


def _without_startup(run: Callable[[str, list[SourceRow]], float], rows: list[SourceRow]) -> Figures:
    """Measure a run that starts its own processes: the time of a run over two utterances is subtracted as start-up."""
    began = time.perf_counter()
    run("first", rows[:PROCESSES])
    startup = time.perf_counter() - began
    began = time.perf_counter()
    hours = run("all", rows)
    seconds = time.perf_counter() - began - startup
    return {"hours_per_second": hours / seconds, "seconds": seconds, "startup_s": startup, "hours": hours}


def _lhotse(corpus: str, out: str) -> Figures:
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    torch.set_num_threads(1)
    _warm()

    def cut_of(row: SourceRow) -> "MonoCut":
        recording = Recording.from_file(row["audio"], recording_id=row["id"])
        text = SupervisionSegment(row["id"], row["id"], 0, recording.duration, text=row["text"], speaker=row["speaker"])
        return MonoCut(row["id"], 0, recording.duration, 0, recording=recording, supervisions=[text])

    def run(name: str, members: list[SourceRow]) -> float:
        cuts = [cut_of(row) for row in members]
        resampled = CutSet.from_cuts(cuts).resample(16_000)
        shard_size = min(220, max(1, len(cuts) // PROCESSES))
        resampled.to_shar(f"{out}/{name}", fields={"recording": "flac"}, shard_size=shard_size, num_jobs=PROCESSES)
        return float(sum(cut.duration for cut in cuts)) / 3600

    return _without_startup(run, _rows(corpus))


if __name__ == "__main__":
    sides: dict[str, Callable[[str, str], Figures]] = {
        "ours": _ours, "bound": _bound, "datasets": _datasets, "lhotse": _lhotse,
    }  # fmt: skip
    print(json.dumps(sides[sys.argv[1]](sys.argv[2], sys.argv[3])))
