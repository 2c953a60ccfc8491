"""Parquet as Hugging Face `datasets` writes it: audio is located here, and read when it is decoded."""

import math
from collections.abc import Iterator
from typing import TypeAlias

import pyarrow as pa

from foldray.data.layouts.fields import FIELD_NAMES, text_of
from foldray.data.layouts.source_folder import SourceFolder, file_name, find_shards, stem
from foldray.data.utterance import ContainerEntry, Utterance
from foldray.errors import UserError, one_line
from foldray.storage.parquet import ParquetReader, open_parquet
from foldray.storage.parquet_types import check_plain

_COLUMNS = {name: FIELD_NAMES[name] for name in ("text", "id", "speaker", "language", "duration")}
"""The names that each column is recognised by, best first."""

Fields: TypeAlias = dict[str, object]
"""Values of one row by the keys of `_COLUMNS`."""


def find_parquet(source: SourceFolder, name: str) -> list[str]:
    """`<name>.parquet` or `<name>-*.parquet`, in the folder or in `data/`, or all of `<name>/*.parquet`."""
    return find_shards(source, name, (".parquet",))


def read_parquet(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of one file: `audio` with bytes or a path, a text, and the optional columns.

    Only the small columns are read, row group by row group. Sizes are even shares of the row group's audio. Of a
    damaged file, the rows before the damage are kept, and one utterance named after the file is unreadable.

    Raises:
        UserError: The file has no audio column or no text column, or one with an extension type.
    """
    try:
        with open_parquet(uri) as file:
            yield from _utterances(file, uri, split, source)
    except (pa.ArrowException, OSError) as error:
        problem = ("unreadable", f"a damaged Parquet file: {one_line(error)}")
        yield Utterance(file_name(uri), split, uri, None, uri, problem=problem)


def _utterances(file: ParquetReader, uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    check_plain(file.schema, ["audio"], uri)
    leaf, has_path = _audio_column(file.schema, uri)
    columns = {name: _first_present(file.schema, known) for name, known in _COLUMNS.items()}
    if columns["text"] is None and source.needs_text:
        present = ", ".join(file.schema.names)
        raise UserError(uri, f"has no text: none of the columns {', '.join(_COLUMNS['text'])}, but {present}")
    small = [column for column in columns.values() if column] + (["audio.path"] if has_path else [])
    before = 0
    seen: set[str] = set()
    for group in range(file.footer.num_row_groups):
        stored, size = _stored_audio(file, group, leaf)
        rows = (row for batch in file.batches(group, small) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            fields = {name: row[column] if column else None for name, column in columns.items()}
            path = (row["audio"] or {}).get("path") if has_path else None
            described = f"{uri}:{before + number}"
            fields["id"] = _id_of(fields["id"], path, described, split, seen)
            if stored is None or stored[number]:
                entry = ContainerEntry("row", group, number)
                yield _utterance(fields, path, described, split, audio=uri, entry=entry, size=size)
            else:
                audio = source.audio(path, source.root) if path else ""
                yield _utterance(fields, path, described, split, audio=audio)
        before += file.footer.row_group(group).num_rows


def _audio_column(schema: pa.Schema, uri: str) -> tuple[str | None, bool]:
    """The column of the bytes (None without one), and whether `audio` has a path."""
    kind = schema.field("audio").type if "audio" in schema.names else None
    if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return "audio", False
    fields = {kind.field(i).name for i in range(kind.num_fields)} if kind and pa.types.is_struct(kind) else set()
    if not fields & {"bytes", "path"}:
        raise UserError(uri, f"has no column audio of bytes or of struct<bytes, path>, but {', '.join(schema.names)}")
    return ("audio.bytes" if "bytes" in fields else None), "path" in fields


def _first_present(schema: pa.Schema, known: tuple[str, ...]) -> str | None:
    return next((name for name in known if name in schema.names), None)


def _stored_audio(file: ParquetReader, group: int, leaf: str | None) -> tuple[list[bool] | None, int]:
    """Return which rows of a row group hold embedded audio (None: all), and the mean number of bytes of each."""
    metadata = file.footer.row_group(group)
    if leaf is None:
        return [False] * metadata.num_rows, 0
    chunks = (metadata.column(i) for i in range(metadata.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == leaf)
    counted = chunk.statistics is not None and chunk.statistics.has_null_count
    stored = None if counted and not chunk.statistics.null_count else _is_valid(file, group, leaf)
    count = metadata.num_rows if stored is None else sum(stored)
    return stored, max(1, chunk.total_compressed_size // max(1, count))


def _is_valid(file: ParquetReader, group: int, leaf: str) -> list[bool]:
    """Whether each row has bytes. This reads the audio, so it is used only where statistics do not count nulls."""
    valid: list[bool] = []
    for batch in file.batches(group, [leaf]):
        column = batch.column(0)
        if leaf != "audio":
            column = column.flatten()[0]  # with the nulls of the struct itself
        valid += column.is_valid().to_pylist()
    return valid


def _id_of(given: object, path: str | None, row: str, split: str, seen: set[str]) -> str:
    """The id of a row: its own, or else the name of its file, or the row's number where names repeat."""
    if isinstance(given, int):  # a counter, which restarts in each split
        return f"{split}-{given}"
    if given not in (None, ""):
        return str(given)
    name = stem((path or "").rpartition("/")[2])
    file, _, number = row.rpartition(":")
    if not name or name in seen:
        return f"{stem(file_name(file))}-{number}"
    seen.add(name)
    return name


def _utterance(
    fields: Fields,
    path: str | None,
    row: str,
    split: str,
    *,
    audio: str,
    entry: ContainerEntry | None = None,
    size: int | None = None,
) -> Utterance:
    """The utterance of a row whose audio is stored in it (`entry`, `size`) or in a file of its own."""
    duration = fields["duration"]
    known = isinstance(duration, int | float) and math.isfinite(duration) and duration > 0
    text, problem = text_of(fields["text"])
    return Utterance(
        id=str(fields["id"]),
        split=split,
        audio=audio,
        text=text,
        row=row,
        speaker="" if fields["speaker"] is None else str(fields["speaker"]),
        language="" if fields["language"] is None else str(fields["language"]),
        duration=float(duration) if known and isinstance(duration, int | float) else None,
        entry=entry,
        bytes=size,
        problem=problem or _place_problem(located=bool(entry or path)),
    )


def _place_problem(*, located: bool) -> tuple[str, str] | None:
    return None if located else ("missing_file", "the row has neither bytes nor a path")
