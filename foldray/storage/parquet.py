"""Parquet files: the only module that opens one for reading, since a source or a store may be anybody's.

Extension types are refused: `ray.data.arrow_pickled_object`, which Ray Data registers, unpickles each value when it
becomes a Python value, and so runs code of the file. Sizes are bounded before and while a row group is decoded: a
dictionary page of 1 kB may stand for gigabytes.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.errors import DamagedFileError, UserError, one_line

Filters: TypeAlias = list[tuple[str, str, str]]
"""Conditions on columns, as pyarrow takes them: (column, operator, value)."""

MAX_ROW_GROUP_BYTES = 2**32
"""Most decoded bytes of the columns that are read of one row group."""
MAX_ROWS = 2**24
"""Most rows of one file: a column of nulls takes no bytes at all."""
_BATCH_BYTES = 2**28
"""Most decoded bytes of one batch."""
_BATCH_ROWS = 2**16

_EXTENSION = b"ARROW:extension:name"
_PLAIN_EXTENSIONS = {"arrow.json", "arrow.uuid"}
"""Extension types of Arrow itself whose values become `str` and `uuid.UUID`."""


class ParquetReader:
    """An open Parquet file, whose tables hold plain values only.

    Attributes:
        schema: Names and types of all columns. A column with a refused type may be listed, but not read.
        footer: Where each row group and column lies.
    """

    def __init__(self, file: object, where: str, footer: pq.FileMetaData | None = None, verify: bool = False) -> None:
        """Open a file.

        Args:
            file: A binary file, or its path.
            where: Its URI, for messages.
            footer: The footer if it is known, which saves two requests to an object store.
            verify: Whether pages are verified against their checksums.

        Raises:
            pa.ArrowException: The file is damaged, is not Parquet, or has too many rows.
        """
        with _damaged_names():
            self._file = pq.ParquetFile(file, metadata=footer, page_checksum_verification=verify)  # noqa: TID251
            self.schema: pa.Schema = self._file.schema_arrow
        self._where = where
        self.footer: pq.FileMetaData = self._file.metadata
        if self.footer.num_rows > MAX_ROWS:
            raise pa.ArrowInvalid(f"it has {self.footer.num_rows:,} rows, over the limit of {MAX_ROWS:,}")

    def batches(self, number: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of one row group in batches of at most 256 MiB, however far their encoding is compressed.

        Args:
            number: Row group, from 0.
            columns: Names of columns, or paths such as `audio.path`.

        Raises:
            UserError: A column has an extension type.
            pa.ArrowException: The row group is damaged or too large.
        """
        check_plain(self.schema, columns, self._where)
        # A value is at most as long as its column, but a dictionary or a common prefix may repeat it in every row.
        rows = _BATCH_BYTES // max(1, self._checked_bytes(number, columns))
        rows = max(1, min(_BATCH_ROWS, rows))
        for batch in self._file.iter_batches(rows, row_groups=[number], columns=list(columns)):
            batch.validate(full=True)  # else invalid UTF-8 raises only when it becomes a Python value
            yield batch

    def read_row_group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """One row group as a table. Raises as `batches`."""
        batches: list[pa.RecordBatch] = []
        decoded = 0
        for batch in self.batches(number, columns):
            batches.append(batch)
            decoded += batch.nbytes
            _check_bytes(decoded, number)
        return pa.Table.from_batches(batches) if batches else self._file.read_row_group(number, columns=list(columns))

    def read(self, columns: Sequence[str]) -> pa.Table:
        """All row groups of a file that foldray wrote, bounded by the sizes in its footer. Raises as `batches`.

        Row groups are decoded whole: the index of a million utterances would take minutes in batches.
        """
        check_plain(self.schema, columns, self._where)
        tables = [self.schema.empty_table().select(list(columns))]
        for number in range(self.footer.num_row_groups):
            self._checked_bytes(number, columns)
            tables.append(self._file.read_row_group(number, columns=list(columns)))
        return pa.concat_tables(tables)

    def _checked_bytes(self, number: int, columns: Sequence[str]) -> int:
        """The bytes of the largest column, as the footer declares it. Raises ArrowInvalid where they are too many."""
        group = self.footer.row_group(number)
        sizes = [0]
        for chunk in map(group.column, range(group.num_columns)):
            with _damaged_names():
                path = chunk.path_in_schema
            if any(path == column or path.startswith(f"{column}.") for column in columns):
                sizes.append(chunk.total_uncompressed_size)
        _check_bytes(sum(sizes), number)
        return max(sizes)


@contextlib.contextmanager
def _damaged_names() -> Iterator[None]:
    """Names of columns that are not UTF-8 raise ArrowInvalid, as other damage does."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"the name of a column is not UTF-8: {error}") from error


def _check_bytes(size: int, number: int) -> None:
    if size > MAX_ROW_GROUP_BYTES:
        limit = f"{MAX_ROW_GROUP_BYTES:,}"
        raise pa.ArrowInvalid(f"row group {number} takes over {limit} bytes decoded; write smaller row groups")


def check_plain(schema: pa.Schema, columns: Sequence[str], where: str) -> None:
    """Raise UserError if one of the columns has an extension type, or contains one.

    The name in a field's metadata counts too: whether it becomes a type depends on what else is imported.

    Args:
        schema: The schema of a file.
        columns: Names of columns, or paths in them.
        where: The file, for messages.
    """
    roots = {*columns, *(column.partition(".")[0] for column in columns)}
    for field in schema:
        found = _extension(field) if field.name in roots else None
        if found:
            raise UserError(where, f"column '{field.name}' has the extension type {found}; write it with a plain type")


def _extension(field: pa.Field) -> str | None:
    """The name of the first extension type in a field that is not known to be plain, None without one."""
    kind = field.type
    name = (field.metadata or {}).get(_EXTENSION, b"").decode(errors="replace")
    if isinstance(kind, pa.BaseExtensionType):
        name = kind.extension_name
        if type(kind) not in (pa.JsonType, pa.UuidType):
            return str(name)
    if name and name not in _PLAIN_EXTENSIONS:
        return str(name)
    inner = [pa.field("", kind.value_type)] if pa.types.is_dictionary(kind) else []
    inner += [kind.field(i) for i in range(kind.num_fields)]
    return next(filter(None, map(_extension, inner)), None)


@contextlib.contextmanager
def open_parquet(uri: str) -> Iterator[ParquetReader]:
    """A Parquet file opened for reading by row groups.

    Raises:
        FileNotFoundError: The file does not exist.
        pa.ArrowException: The file is damaged, or is not Parquet.
    """
    with storage.open_file(uri) as file:
        yield ParquetReader(file, uri)


def open_local(path: Path) -> ParquetReader:
    """A local Parquet file, opened for reading by row groups. Raises as `open_parquet`."""
    return ParquetReader(path, str(path))


def parse_parquet(data: bytes, where: str) -> ParquetReader:
    """A Parquet file in memory, whose pages are verified against their checksums as they are read."""
    return ParquetReader(io.BytesIO(data), where, verify=True)


def read_table(uri: str, schema: pa.Schema, filters: Filters | None = None) -> pa.Table:
    """The rows of a file that foldray wrote which match `filters`, with the columns and types of `schema`.

    Raises:
        FileNotFoundError: The file does not exist.
        DamagedFileError: It can't be read, lacks a column, or has a value that is missing or of another type.
    """
    wanted = [*schema.names, *(column for column, _, _ in filters or [])]
    try:
        with storage.open_file(uri) as file:
            reader = ParquetReader(file, uri)
            check_names(reader.schema, wanted)
            table = reader.read(wanted)
        if filters:
            table = table.filter(pq.filters_to_expression(filters))
        return as_schema(table, schema)
    except pa.ArrowException as error:
        raise DamagedFileError(uri, f"is damaged ({one_line(error)}); run `foldray prepare` again") from None


def check_names(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise pa.ArrowInvalid for a column that a schema lacks or has twice."""
    if missing := [name for name in columns if schema.get_field_index(name) < 0]:
        raise pa.ArrowInvalid(f"it has no column {', '.join(missing)}, or two of them")


def as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns and types of a schema. Raises pa.ArrowInvalid for a missing column or value."""
    check_names(table.schema, schema.names)
    table = table.select(schema.names).cast(schema)
    table.validate(full=True)
    for name in schema.names:
        if table[name].null_count:
            raise pa.ArrowInvalid(f"column {name} has {table[name].null_count} rows without a value")
    return table


def read_footer(uri: str) -> pq.FileMetaData:
    """The footer of a file: its schema, and where each row group and column lies."""

    def read() -> pq.FileMetaData:
        with storage.open_file(uri) as file:
            return pq.read_metadata(file)

    return storage.retrying(read, uri)


def read_row_group(
    uri: str, number: int, columns: Sequence[str], *, footer: pq.FileMetaData | None = None, verify: bool = False
) -> pa.Table:
    """One row group of a file. `footer` and `verify` as in `ParquetReader`, errors as in `ParquetReader.batches`."""

    def read() -> pa.Table:
        with storage.open_file(uri) as file:
            return ParquetReader(file, uri, footer, verify).read_row_group(number, columns)

    return storage.retrying(read, uri)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one file, so that no reader ever sees half of it."""
    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())
