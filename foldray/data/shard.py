"""One shard: the utterances of a task, read, checked, and written as one Parquet file that describes itself."""

import functools
import hashlib
import io
import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE, CorpusSpec
from foldray.data.audio import BadAudioError, decode, encode_flac
from foldray.data.manifest import INDEX_SCHEMA, SHARD_SCHEMA, Shard
from foldray.data.utterance import Utterance
from foldray.errors import one_line
from foldray.models.tokenizer import Tokenizer, tokenizer_from_json
from foldray.storage.layout import PreparedCorpus

_SUMMARY_KEY = b"foldray.summary"


@dataclass(frozen=True)
class ShardTask:
    """All that the task which writes one shard needs to know.

    home: the corpus folder, which sources are told from, so that the same corpus elsewhere gives the same bytes;
    subwords: JSON of the sub-word tokenizer, None for characters.
    """

    file: str
    split: str
    utterances: list[Utterance]
    spec: CorpusSpec
    home: str = ""
    subwords: str | None = None


@dataclass(frozen=True)
class WrittenShard:
    """A shard's place in the manifest, its part of the index (`shard` still 0), its quarantine and its characters."""

    shard: Shard
    index: pa.Table
    quarantine: list[dict[str, str]]
    characters: str


def write_shard(task: ShardTask, folder: str) -> WrittenShard:
    """Write one shard unless it is there already, whole. The file itself says what the result holds."""
    file = PreparedCorpus(folder).file(task.file)
    if storage.exists(file):
        data = storage.read_bytes(file)
        try:
            pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
            return _describe(task, data)
        except (pa.ArrowException, KeyError, TypeError, OSError):
            storage.remove(file)  # damaged since it was written: made anew
    data = encode_shard(task)
    storage.write_bytes(file, data)
    return _describe(task, data)


# --- Writing ----------------------------------------------------------------------------------------


def encode_shard(task: ShardTask) -> bytes:
    groups, quarantine = _row_groups(task)
    summary = json.dumps({"quarantine": quarantine}).encode()
    schema = SHARD_SCHEMA.with_metadata({_SUMMARY_KEY: summary})
    target = io.BytesIO()
    # FLAC does not compress again, and a dictionary of it would only double the work.
    codecs = {name: "none" if name == "audio" else "zstd" for name in schema.names}
    options: dict[str, Any] = {"compression": codecs, "use_dictionary": ["speaker", "language"]}
    with pq.ParquetWriter(target, schema, write_page_checksum=True, **options) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
    return target.getvalue()


def _row_groups(task: ShardTask) -> tuple[list[list[dict[str, Any]]], list[dict[str, str]]]:
    groups: list[list[dict[str, Any]]] = [[]]
    quarantine = []
    seconds = 0.0
    tokenizer = _tokenizer(task.subwords)
    for utterance in task.utterances:
        try:
            row = _read_utterance(utterance, task, tokenizer)
        except BadAudioError as bad:
            quarantine.append(quarantine_entry(utterance, bad.reason, bad.detail, task.home))
            continue
        length = row["num_samples"] / SAMPLE_RATE
        if groups[-1] and seconds + length > task.spec.row_group_seconds:
            groups.append([])
            seconds = 0.0
        groups[-1].append(row)
        seconds += length
    return [group for group in groups if group], quarantine


def _read_utterance(utterance: Utterance, task: ShardTask, tokenizer: Tokenizer | None) -> dict[str, Any]:
    spec = task.spec
    try:
        samples_T = _read_audio(utterance, spec.max_seconds)
    except FileNotFoundError:
        raise BadAudioError("missing_file", f"no file at {utterance.audio}") from None
    except (OSError, ValueError) as error:  # what a store refuses, or keeps refusing, is a UserError by now
        raise BadAudioError("unreadable", f"{utterance.audio}: {one_line(error)}") from None
    seconds = len(samples_T) / SAMPLE_RATE
    if seconds < spec.min_seconds:
        raise BadAudioError("too_short", f"{seconds:.2f} s, under corpus.min_seconds={spec.min_seconds:g}")
    if seconds > spec.max_seconds:
        raise BadAudioError("too_long", f"{seconds:.2f} s, over corpus.max_seconds={spec.max_seconds:g}")
    labels, repeats = count_labels(utterance.text or "", tokenizer)
    frames = int(len(samples_T) / round(spec.frame_seconds * SAMPLE_RATE))
    # Only of what is trained on: a test set is scored whole.
    if labels + repeats > frames and task.split in ("train", "valid"):
        needed = f"the text needs {labels + repeats} frames, {seconds:.2f} s have {frames}"
        raise BadAudioError("labels_longer_than_frames", f"{needed} (corpus.frame_seconds={spec.frame_seconds:g})")
    return {
        "id": utterance.id,
        "audio": encode_flac(samples_T),
        "num_samples": len(samples_T),
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "source": storage.relative(utterance.row, task.home),
    }


def _read_audio(utterance: Utterance, max_seconds: float) -> Any:
    """Samples (T,) of an utterance; of a segment only its own part of the file is read."""
    timing = (utterance.duration, utterance.start, utterance.channel, max_seconds)
    if utterance.within is None:
        if utterance.start is None:
            return decode(storage.read_bytes(utterance.audio), *timing)
        with storage.open_file(utterance.audio) as file:
            return decode(file, *timing)
    place = utterance.within
    if place.kind == "bytes":
        return decode(storage.read_range(utterance.audio, place.first, place.second), *timing)
    try:
        audio = _source_row_group(utterance.audio, place.first)[place.second].as_py()
    except (pa.ArrowException, IndexError) as error:
        raise BadAudioError("unreadable", f"{utterance.audio}: {one_line(error)}") from None
    return decode(audio["bytes"] if isinstance(audio, dict) else audio, *timing)


@functools.lru_cache(maxsize=1)
def _source_row_group(uri: str, number: int) -> pa.ChunkedArray:
    """The column `audio` of one row group of a Parquet source; tasks go through row groups one after the other."""

    def read() -> pa.ChunkedArray:
        with storage.open_file(uri) as file:
            return pq.ParquetFile(file).read_row_group(number, columns=["audio"])["audio"]

    return storage.retrying(read, uri)


# --- Describing -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _tokenizer(subwords: str | None) -> Tokenizer | None:
    return tokenizer_from_json(subwords) if subwords else None


def count_labels(text: str, tokenizer: Tokenizer | None) -> tuple[int, int]:
    """Labels of a text, and how many equal the one before; without a tokenizer every character is a label."""
    ids: Any = tokenizer.encode(text) if tokenizer else text
    return len(ids), sum(a == b for a, b in itertools.pairwise(ids))


def _describe(task: ShardTask, data: bytes) -> WrittenShard:
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    table = file.read(columns=["id", "num_samples", "text", "language"])
    texts = table["text"].to_pylist()
    samples = table["num_samples"].to_numpy()
    shard = Shard(
        file=task.file,
        split=task.split,
        rows=table.num_rows,
        seconds=int(samples.sum()) / SAMPLE_RATE,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        languages=sorted(set(table["language"].to_pylist()) - {""}),
    )
    groups = [_group_range(file.metadata.row_group(i)) for i in range(file.metadata.num_row_groups)]
    rows = np.array([group["rows"] for group in groups], dtype=np.int64)
    tokenizer = _tokenizer(task.subwords)
    labels = np.array([count_labels(text, tokenizer) for text in texts], dtype=np.int32).reshape(-1, 2)
    columns = {
        "id": table["id"],
        "split": pa.array([task.split] * table.num_rows, pa.string()),
        "shard": np.zeros(table.num_rows, dtype=np.int32),
        "row_group": np.repeat(np.arange(len(groups), dtype=np.int32), rows),
        "row": np.concatenate([np.zeros(0, dtype=np.int32), *(np.arange(n, dtype=np.int32) for n in rows)]),
        "num_samples": samples,
        "num_labels": labels[:, 0],
        "num_repeats": labels[:, 1],
        "offset": np.repeat(np.array([g["offset"] for g in groups], dtype=np.int64), rows),
        "bytes": np.repeat(np.array([g["bytes"] for g in groups], dtype=np.int64), rows),
    }
    summary = json.loads(file.schema_arrow.metadata[_SUMMARY_KEY])
    characters = "".join(sorted(set().union(*map(set, texts))))
    return WrittenShard(shard, pa.table(columns, INDEX_SCHEMA), summary["quarantine"], characters)


def _group_range(group: Any) -> dict[str, int]:
    columns = [group.column(i) for i in range(group.num_columns)]
    start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
    return {"rows": group.num_rows, "offset": start, "bytes": sum(c.total_compressed_size for c in columns)}


def quarantine_entry(utterance: Utterance, reason: str, detail: str, home: str) -> dict[str, str]:
    """A row of the quarantine table; places are told from the corpus folder, which may lie anywhere."""
    return {
        "id": utterance.id,
        "split": utterance.split,
        "source": storage.relative(utterance.row, home),
        "reason": reason,
        "detail": detail.replace(utterance.audio, storage.relative(utterance.audio, home))
        if utterance.audio
        else detail,
    }
