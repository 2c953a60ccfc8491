"""One shard: the utterances of a task are read, checked, and written as one Parquet file that describes itself."""

import hashlib
import io
import itertools
import json
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE, CorpusSpec
from foldray.data.audio import encode_flac
from foldray.data.labels import count_labels, task_tokenizer
from foldray.data.manifest import INDEX_SCHEMA, SHARD_SCHEMA, QuarantineEntry, Shard, quarantine_entry
from foldray.data.samples import BadAudioError
from foldray.data.source_audio import read_audio
from foldray.data.utterance import Utterance
from foldray.errors import one_line
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import PreparedCorpus
from foldray.storage.parquet import as_schema, parse_parquet

_SUMMARY_KEY = b"foldray.summary"


class ShardRow(TypedDict):
    """One utterance as its shard stores it: the columns of `SHARD_SCHEMA`."""

    id: str
    audio: bytes  # FLAC, 16 kHz, mono, 16 bit
    num_samples: int
    text: str
    speaker: str
    language: str
    source: str


@dataclass(frozen=True)
class ShardTask:
    """Everything that the Ray task which writes one shard needs.

    Attributes:
        file: The shard's path in the prepared corpus.
        split: The split of all its utterances.
        utterances: What to write, in order.
        spec: The limits and the text profile.
        home: The source's corpus folder. Source paths are stored relative to it, so that the same corpus in another
            folder gives the same bytes.
        subwords: JSON of the sub-word tokenizer, None for characters.
    """

    file: str
    split: str
    utterances: list[Utterance]
    spec: CorpusSpec
    home: str = ""
    subwords: str | None = None


@dataclass(frozen=True)
class EncodedShard:
    """A shard in memory: the file, and the rows, footer and quarantine it was written with (or was parsed into)."""

    data: bytes
    rows: list[ShardRow]
    footer: pq.FileMetaData
    quarantine: list[QuarantineEntry]


@dataclass(frozen=True)
class WrittenShard:
    """A shard's entry in the manifest, its part of the index (`shard` still 0), its quarantine and its characters."""

    shard: Shard
    index: pa.Table
    quarantine: list[QuarantineEntry]
    characters: str


def write_shard(task: ShardTask, folder: str) -> WrittenShard:
    """Write the shard of a task into a prepared corpus, unless an intact one is there from an earlier attempt."""
    file = PreparedCorpus(folder).file(task.file)
    tokenizer = task_tokenizer(task.spec.units, task.subwords, folder)
    if storage.exists(file):
        try:
            return _describe(task, parse_shard(storage.read_bytes(file), file), tokenizer)
        except (pa.ArrowException, KeyError, TypeError, OSError):
            storage.remove(file)  # damaged since it was written
    encoded = encode_shard(task, tokenizer)
    storage.write_bytes(file, encoded.data)
    return _describe(task, encoded, tokenizer)


def parse_shard(data: bytes, where: str) -> EncodedShard:
    """A shard read back from its file `where`, verified against its checksums."""
    parquet = parse_parquet(data, where)
    rows: list[ShardRow] = as_schema(parquet.read(SHARD_SCHEMA.names), SHARD_SCHEMA).to_pylist()
    summary = json.loads(parquet.schema.metadata[_SUMMARY_KEY])
    return EncodedShard(data, rows, parquet.footer, summary["quarantine"])


# --- Writing ----------------------------------------------------------------------------------------


def encode_shard(task: ShardTask, tokenizer: Tokenizer | None = None) -> EncodedShard:
    """Read and check the audio of a task's utterances, and encode those that are usable as one Parquet file."""
    groups, quarantine = _row_groups(task, tokenizer)
    schema = SHARD_SCHEMA.with_metadata({_SUMMARY_KEY: json.dumps({"quarantine": quarantine}).encode()})
    target = io.BytesIO()
    footers: list[pq.FileMetaData] = []
    with pq.ParquetWriter(
        target,
        schema,
        # FLAC does not compress again, and a dictionary of it would only double the work.
        compression={name: "none" if name == "audio" else "zstd" for name in schema.names},
        use_dictionary=["speaker", "language"],
        write_page_checksum=True,
        metadata_collector=footers,
    ) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
    return EncodedShard(target.getvalue(), list(itertools.chain(*groups)), footers[0], quarantine)


def _row_groups(task: ShardTask, tokenizer: Tokenizer | None) -> tuple[list[list[ShardRow]], list[QuarantineEntry]]:
    """The rows of each row group, and the quarantine entries of the utterances that are not usable."""
    groups: list[list[ShardRow]] = [[]]
    quarantine = []
    seconds = 0.0
    for utterance in task.utterances:
        try:
            row = _read_row(utterance, task, tokenizer)
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


def _read_row(utterance: Utterance, task: ShardTask, tokenizer: Tokenizer | None) -> ShardRow:
    """The row of an utterance. Raises BadAudioError where it is not usable."""
    try:
        samples_T = read_audio(utterance, task.spec.max_seconds)
    except FileNotFoundError:
        raise BadAudioError("missing_file", f"no file at {utterance.audio}") from None
    except (OSError, ValueError) as error:  # a store's refusal or outage is a UserError by now
        raise BadAudioError("unreadable", f"{utterance.audio}: {one_line(error)}") from None
    text = utterance.text or ""
    _check_lengths(len(samples_T), text, task, tokenizer)
    return {
        "id": utterance.id,
        "audio": encode_flac(samples_T),
        "num_samples": len(samples_T),
        "text": text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "source": storage.relative(utterance.row, task.home),
    }


def _check_lengths(num_samples: int, text: str, task: ShardTask, tokenizer: Tokenizer | None) -> None:
    spec = task.spec
    seconds = num_samples / SAMPLE_RATE
    if seconds < spec.min_seconds:
        raise BadAudioError("too_short", f"{seconds:.2f} s, under corpus.min_seconds={spec.min_seconds:g}")
    if seconds > spec.max_seconds:
        raise BadAudioError("too_long", f"{seconds:.2f} s, over corpus.max_seconds={spec.max_seconds:g}")
    labels, repeats = count_labels(text, tokenizer)
    if tokenizer and tokenizer.special:
        if token := tokenizer.special_in(text):
            raise BadAudioError("bad_text", f"'{token}' has a meaning of its own in this tokenizer; write it otherwise")
        special = tokenizer.special
        positions = max(map(len, special.prompts.values())) + labels
        if positions > special.most and task.split in ("train", "valid"):
            raise BadAudioError("too_many_tokens", f"prompt and text take {positions} of {special.most} positions")
        return
    frames = int(num_samples / round(spec.frame_seconds * SAMPLE_RATE))
    # Only in splits that a CTC loss is computed on: a test set is scored whole.
    if labels + repeats > frames and task.split in ("train", "valid"):
        needed = f"the text needs {labels + repeats} frames, {seconds:.2f} s have {frames}"
        raise BadAudioError("labels_longer_than_frames", f"{needed} (corpus.frame_seconds={spec.frame_seconds:g})")


# --- Describing -------------------------------------------------------------------------------------


def _describe(task: ShardTask, encoded: EncodedShard, tokenizer: Tokenizer | None) -> WrittenShard:
    rows = encoded.rows
    shard = Shard(
        file=task.file,
        split=task.split,
        rows=len(rows),
        seconds=sum(row["num_samples"] for row in rows) / SAMPLE_RATE,
        bytes=len(encoded.data),
        sha256=hashlib.sha256(encoded.data).hexdigest(),
        languages=sorted({row["language"] for row in rows} - {""}),
    )
    characters = "".join(sorted(set().union(*(row["text"] for row in rows))))
    return WrittenShard(shard, _index(task, encoded, tokenizer), encoded.quarantine, characters)


def _index(task: ShardTask, encoded: EncodedShard, tokenizer: Tokenizer | None) -> pa.Table:
    """The shard's part of the index: one row for each utterance, in the order of the file."""
    rows, footer = encoded.rows, encoded.footer
    groups = [_row_group_range(footer.row_group(i)) for i in range(footer.num_row_groups)]
    sizes = np.array([group.rows for group in groups], dtype=np.int64)
    labels = np.array([count_labels(row["text"], tokenizer) for row in rows], dtype=np.int32).reshape(-1, 2)
    columns = {
        "id": [row["id"] for row in rows],
        "split": [task.split] * len(rows),
        "shard": np.zeros(len(rows), dtype=np.int32),
        "row_group": np.repeat(np.arange(len(groups), dtype=np.int32), sizes),
        "row": np.concatenate([np.zeros(0, dtype=np.int32), *(np.arange(n, dtype=np.int32) for n in sizes)]),
        "num_samples": [row["num_samples"] for row in rows],
        "num_labels": labels[:, 0],
        "num_repeats": labels[:, 1],
        "offset": np.repeat(np.array([group.offset for group in groups], dtype=np.int64), sizes),
        "bytes": np.repeat(np.array([group.bytes for group in groups], dtype=np.int64), sizes),
    }
    return pa.table(columns, INDEX_SCHEMA)


@dataclass(frozen=True)
class _RowGroupRange:
    rows: int
    offset: int  # first byte in the file
    bytes: int


def _row_group_range(group: pq.RowGroupMetaData) -> _RowGroupRange:
    columns = [group.column(i) for i in range(group.num_columns)]
    start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
    return _RowGroupRange(group.num_rows, start, sum(column.total_compressed_size for column in columns))
