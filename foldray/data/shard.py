"""One shard: the utterances of a task, read, checked, and written as one Parquet file that describes itself."""

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.data.audio import BadAudioError, decode, encode_flac
from foldray.data.corpora import Utterance
from foldray.data.manifest import INDEX_SCHEMA, SHARD_SCHEMA, Shard
from foldray.data.text import Units
from foldray.spec import SAMPLE_RATE, CorpusSpec

_SUMMARY_KEY = b"foldray.summary"


@dataclass(frozen=True)
class ShardTask:
    """All that the task which writes one shard needs to know."""

    file: str
    split: str
    utterances: list[Utterance]
    spec: CorpusSpec


def write_shard(task: ShardTask, folder: str) -> dict[str, Any]:
    """Write one shard unless it is there already; returns its summary, which the file carries too."""
    file = storage.join(folder, task.file)
    if storage.exists(file):
        data = storage.read_bytes(file)
    else:
        data = _encode_shard(task)
        storage.write_bytes(file, data)
    return _summarise(task, data)


def _encode_shard(task: ShardTask) -> bytes:
    groups, quarantine = _row_groups(task)
    summary = json.dumps({"quarantine": quarantine}).encode()
    schema = SHARD_SCHEMA.with_metadata({_SUMMARY_KEY: summary})
    target = io.BytesIO()
    # FLAC does not compress again, and a dictionary of it would only double the work.
    codecs = {name: "none" if name == "audio" else "zstd" for name in schema.names}
    with pq.ParquetWriter(target, schema, compression=codecs, use_dictionary=["speaker", "language"]) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
    return target.getvalue()


def _row_groups(task: ShardTask) -> tuple[list[list[dict[str, Any]]], list[dict[str, str]]]:
    groups: list[list[dict[str, Any]]] = [[]]
    quarantine = []
    seconds = 0.0
    for utterance in task.utterances:
        try:
            row = _read_utterance(utterance, task.spec)
        except BadAudioError as bad:
            quarantine.append(quarantine_entry(utterance, bad.reason, bad.detail))
            continue
        length = row["num_samples"] / SAMPLE_RATE
        if groups[-1] and seconds + length > task.spec.row_group_seconds:
            groups.append([])
            seconds = 0.0
        groups[-1].append(row)
        seconds += length
    return [group for group in groups if group], quarantine


def _read_utterance(utterance: Utterance, spec: CorpusSpec) -> dict[str, Any]:
    try:
        data = storage.read_bytes(utterance.audio)
    except FileNotFoundError:
        raise BadAudioError("missing_file", f"no file at {utterance.audio}") from None
    except PermissionError as error:
        raise BadAudioError("unreadable", f"{utterance.audio}: {error.strerror or error}") from None
    samples_T = decode(data, utterance.duration, utterance.start)
    seconds = len(samples_T) / SAMPLE_RATE
    if seconds < spec.min_seconds:
        raise BadAudioError("too_short", f"{seconds:.2f} s, under corpus.min_seconds={spec.min_seconds:g}")
    if seconds > spec.max_seconds:
        raise BadAudioError("too_long", f"{seconds:.2f} s, over corpus.max_seconds={spec.max_seconds:g}")
    return {
        "id": utterance.id,
        "audio": encode_flac(samples_T),
        "num_samples": len(samples_T),
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "source": utterance.row,
    }


def _summarise(task: ShardTask, data: bytes) -> dict[str, Any]:
    file = pq.ParquetFile(io.BytesIO(data))
    columns = file.read(columns=["id", "num_samples", "text", "language"]).to_pydict()
    samples, languages = columns["num_samples"], columns.pop("language")
    return {
        **columns,
        "shard": Shard(
            file=task.file,
            split=task.split,
            rows=len(samples),
            seconds=sum(samples) / SAMPLE_RATE,
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            languages=sorted(set(languages) - {""}),
        ).model_dump(),
        "groups": [_group_range(file.metadata.row_group(i)) for i in range(file.metadata.num_row_groups)],
        **json.loads(file.schema_arrow.metadata[_SUMMARY_KEY]),
    }


def _group_range(group: Any) -> dict[str, int]:
    columns = [group.column(i) for i in range(group.num_columns)]
    start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
    return {"rows": group.num_rows, "offset": start, "bytes": sum(c.total_compressed_size for c in columns)}


def quarantine_entry(utterance: Utterance, reason: str, detail: str) -> dict[str, str]:
    """A row of the quarantine table."""
    return {
        "id": utterance.id,
        "split": utterance.split,
        "source": utterance.row,
        "reason": reason,
        "detail": detail,
    }


def index_of_shards(summaries: list[dict[str, Any]], units: Units) -> pa.Table:
    rows = []
    for number, summary in enumerate(summaries):
        place = [(g, r) for g, group in enumerate(summary["groups"]) for r in range(group["rows"])]
        for i, (group, row) in enumerate(place):
            rows.append(
                {
                    "id": summary["id"][i],
                    "split": summary["shard"]["split"],
                    "shard": number,
                    "row_group": group,
                    "row": row,
                    "num_samples": summary["num_samples"][i],
                    "num_labels": len(units.encode(summary["text"][i])),
                    "offset": summary["groups"][group]["offset"],
                    "bytes": summary["groups"][group]["bytes"],
                }
            )
    return pa.Table.from_pylist(rows, INDEX_SCHEMA)
