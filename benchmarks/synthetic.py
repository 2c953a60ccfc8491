"""Manifests of any size, laid out as preparation lays them out, for benchmarks that need no audio."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.data.manifest import INDEX_SCHEMA, Manifest, Shard
from foldray.storage.layout import PreparedCorpus

BUCKETS, SHARD_SECONDS, GROUP_SECONDS = 8, 15 * 60, 60


def librispeech_like(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Lengths in samples with LibriSpeech's shape: most from 12 to 16.5 s, a tail down to 1.5 s, 12.6 s on average."""
    most = rng.uniform(size=count) < 0.75
    seconds = np.where(most, rng.normal(14.4, 1.3, count), rng.uniform(1.5, 13.5, count))
    return (np.clip(seconds, 1.5, 17.0) * SAMPLE_RATE).astype(np.int64)


def synthetic_index(count: int) -> tuple[list[str], pa.Table]:
    """Shard files and the index of one split of `count` utterances: duration buckets of equal audio, hashed inside."""
    rng = np.random.default_rng(0)
    samples = np.sort(librispeech_like(count, rng))
    before = np.cumsum(samples) - samples
    bucket = before * BUCKETS // int(samples.sum())
    shuffled = rng.permutation(count)
    order = shuffled[np.argsort(bucket[shuffled], kind="stable")]
    samples, bucket = samples[order], bucket[order]
    shard, group, row = _places(samples, bucket)
    first_of_shard = np.flatnonzero(np.diff(shard, prepend=-1))
    files = [f"shards/train-{bucket[i]:02d}-{n:05d}.parquet" for n, i in enumerate(first_of_shard)]
    numbers = pa.array(np.arange(count)).cast(pa.string())
    columns = {
        "id": pa.compute.binary_join_element_wise("utterance", numbers, "-"),
        "split": pa.repeat("train", count),
        "shard": shard,
        "row_group": group,
        "row": row,
        "num_samples": samples,
        "num_labels": (samples // 1100).astype(np.int32),
        "num_repeats": np.zeros(count, dtype=np.int32),
        "offset": np.zeros(count, dtype=np.int64),
        "bytes": np.zeros(count, dtype=np.int64),
    }
    return files, pa.table(columns, INDEX_SCHEMA)


def _places(samples: npt.NDArray[np.int64], bucket: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int32], ...]:
    """Shard, row group in it and row in that, of utterances in the order they are written."""
    before = np.cumsum(samples) - samples
    opens = np.flatnonzero(np.diff(bucket, prepend=-1))
    before -= np.repeat(before[opens], np.diff(np.append(opens, len(samples))))
    part, group = before // (SHARD_SECONDS * SAMPLE_RATE), before // (GROUP_SECONDS * SAMPLE_RATE)
    new_shard = (np.diff(part, prepend=-1) != 0) | (np.diff(bucket, prepend=-1) != 0)
    new_group = new_shard | (np.diff(group, prepend=-1) != 0)
    shard = np.cumsum(new_shard) - 1
    number = np.cumsum(new_group) - 1
    first_number = number[new_shard]
    first_row = np.flatnonzero(new_group)
    row = np.arange(len(samples)) - first_row[number]
    return shard.astype(np.int32), (number - first_number[shard]).astype(np.int32), row.astype(np.int32)


def write_synthetic_corpus(folder: str, count: int) -> float:
    """A prepared corpus without its shards: manifest and index. Returns its hours."""
    files, index = synthetic_index(count)
    rows = np.bincount(index["shard"].to_numpy())
    samples = np.bincount(index["shard"].to_numpy(), weights=index["num_samples"].to_numpy())
    shards = [
        Shard(file=file, split="train", rows=int(n), seconds=float(s) / SAMPLE_RATE, bytes=0, sha256="")
        for file, n, s in zip(files, rows, samples, strict=True)
    ]
    hours = float(samples.sum()) / SAMPLE_RATE / 3600
    manifest = Manifest(
        corpus_id="synthetic", source="synthetic", layout="jsonl", utterances_in=count, utterances_out=count,
        quarantined=0, reasons={}, hours=hours, vocabulary=["<pad>", "<unk>", "|"], shards=shards,
    )  # fmt: skip
    sink = PreparedCorpus(folder).index
    pq.write_table(index, sink, compression="zstd")
    storage.write_json(PreparedCorpus(folder).manifest, manifest.model_dump())
    return hours
