"""Parquet as Hugging Face `datasets` writes it; the audio in it is found here, and read when it is decoded."""

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.data.layouts.place import Place, file_name, find_shards, stem
from foldray.data.utterance import Utterance, Within
from foldray.errors import UserError, one_line

_COLUMNS = {
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "id": ("id", "segment_id", "utterance_id"),
    "speaker": ("speaker_id", "speaker", "client_id"),
    "language": ("language", "lang", "locale"),
    "duration": ("duration",),
}
_VALIDITY_ROWS = 64


def find_parquet(place: Place, name: str) -> list[str]:
    """`<name>.parquet` or `<name>-*.parquet`, beside or in `data/`, or all of `<name>/*.parquet`."""
    return find_shards(place, name, (".parquet",))


def read_parquet(uri: str, split: str, place: Place) -> Iterator[Utterance]:
    """Utterances of one file: `audio` with bytes or a path, a text, and what else its columns say.

    Only the small columns are read, row group by row group. Sizes are even shares of the row group's
    audio. Of a damaged file, what came whole stays, and one utterance named after it is unreadable.
    Raises UserError where there is no audio or no text column.
    """
    try:
        with storage.open_file(uri) as opened:
            yield from _rows(pq.ParquetFile(opened), uri, split, place)
    except (pa.ArrowException, OSError) as error:
        problem = ("unreadable", f"a damaged Parquet file: {one_line(error)}")
        yield Utterance(file_name(uri), split, uri, None, uri, problem=problem)


def _rows(file: pq.ParquetFile, uri: str, split: str, place: Place) -> Iterator[Utterance]:
    leaf, has_path = _audio_column(file.schema_arrow, uri)
    names = {name: _present(file.schema_arrow, known) for name, known in _COLUMNS.items()}
    if names["text"] is None:
        columns = ", ".join(file.schema_arrow.names)
        raise UserError(uri, f"has no text: none of the columns {', '.join(_COLUMNS['text'])}, but {columns}")
    small = [name for name in names.values() if name] + (["audio.path"] if has_path else [])
    before = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.read_row_group(group, columns=small).to_pylist()
        valid, size = _stored(file, group, leaf)
        for number, row in enumerate(rows):
            said = {name: row[column] if column else None for name, column in names.items()}
            path = (row["audio"] or {}).get("path") if has_path else None
            within = Within("row", group, number) if valid is None or valid[number] else None
            yield _utterance(said, path, within, size, f"{uri}:{before + number}", uri, split, place)
        before += len(rows)


def _audio_column(schema: pa.Schema, uri: str) -> tuple[str | None, bool]:
    """The column of the bytes (None without one), and whether `audio` has a path."""
    kind = schema.field("audio").type if "audio" in schema.names else None
    if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return "audio", False
    fields = {kind.field(i).name for i in range(kind.num_fields)} if kind and pa.types.is_struct(kind) else set()
    if not fields & {"bytes", "path"}:
        raise UserError(uri, f"has no column audio of bytes or of struct<bytes, path>, but {', '.join(schema.names)}")
    return ("audio.bytes" if "bytes" in fields else None), "path" in fields


def _present(schema: pa.Schema, known: tuple[str, ...]) -> str | None:
    return next((name for name in known if name in schema.names), None)


def _stored(file: pq.ParquetFile, group: int, leaf: str | None) -> tuple[list[bool] | None, int]:
    """Which rows of a row group have bytes (None: all of them), and the even share of each."""
    described = file.metadata.row_group(group)
    if leaf is None:
        return [False] * described.num_rows, 0
    chunks = (described.column(i) for i in range(described.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == leaf)
    told = chunk.statistics is not None and chunk.statistics.has_null_count
    valid = None if told and not chunk.statistics.null_count else _validity(file, group, leaf)
    count = described.num_rows if valid is None else sum(valid)
    return valid, max(1, chunk.total_compressed_size // max(1, count))


def _validity(file: pq.ParquetFile, group: int, leaf: str) -> list[bool]:
    """Whether each row has bytes; only where the statistics can't say is the audio read for it."""
    valid: list[bool] = []
    for batch in file.iter_batches(_VALIDITY_ROWS, row_groups=[group], columns=[leaf]):
        column = batch.column(0)
        if leaf != "audio":
            column = column.flatten()[0]  # with the nulls of the struct itself
        valid += column.is_valid().to_pylist()
    return valid


def _utterance(
    said: dict[str, Any],
    path: str | None,
    within: Within | None,
    size: int,
    row: str,
    uri: str,
    split: str,
    place: Place,
) -> Utterance:
    number = row.rpartition(":")[2]
    named = said["id"] if said["id"] not in (None, "") else stem((path or "").rpartition("/")[2])
    if isinstance(named, int):  # a counter, which begins anew in each split
        named = f"{split}-{named}"
    duration = said["duration"]
    known = isinstance(duration, int | float) and math.isfinite(duration) and duration > 0
    beside = place.audio(path, place.folder) if path else ""
    return Utterance(
        id=str(named) or f"{stem(file_name(uri))}-{number}",
        split=split,
        audio=uri if within else beside,
        text=None if said["text"] is None else str(said["text"]),
        row=row,
        speaker="" if said["speaker"] is None else str(said["speaker"]),
        language="" if said["language"] is None else str(said["language"]),
        duration=float(duration) if known else None,
        within=within,
        bytes=size if within else None,
        problem=None if within or path else ("missing_file", "the row has neither bytes nor a path"),
    )
