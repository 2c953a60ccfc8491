"""Parquet files: the only module that opens one for reading, since a source or a store may be anybody's.

Extension types are refused: `ray.data.arrow_pickled_object`, which Ray Data registers, unpickles each value when it
becomes a Python value, and so runs code of the file. Sizes are bounded before and while a row group is decoded, by the
headers of its pages: the footer may say anything, and a dictionary page of 1 kB may stand for gigabytes.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.errors import DamagedFileError, one_line
from foldray.storage.parquet_pages import Pages, Window, longest_repeated
from foldray.storage.parquet_types import check_plain

Filters: TypeAlias = list[tuple[str, str, str]]
"""Conditions on columns, as pyarrow takes them: (column, operator, value)."""

MAX_ROW_GROUP_BYTES = 2**32
"""Most decoded bytes of the columns that are read of one row group."""
MAX_ROWS = 2**24
"""Most rows of one file: a column of nulls takes no bytes at all."""
_BATCH_BYTES = 2**28
"""Most decoded bytes of one batch."""
_BATCH_ROWS = 2**16


class ParquetReader:
    """An open Parquet file, whose tables hold plain values only.

    Attributes:
        schema: Names and types of all columns. A column with a refused type may be listed, but not read.
        footer: Where each row group and column lies.
    """

    def __init__(self, file: object, where: str, footer: pq.FileMetaData | None = None, verify: bool = False) -> None:
        """Open a file.

        Args:
            file: A binary file.
            where: Its URI, for messages.
            footer: The footer if it is known, which saves two requests to an object store.
            verify: Whether pages are verified against their checksums.

        Raises:
            pa.ArrowException: The file is damaged, is not Parquet, or has too many rows.
        """
        self._window = Window(file)
        with _damaged_names():
            self._file = pq.ParquetFile(  # noqa: TID251
                self._window, metadata=footer, page_checksum_verification=verify
            )
            self.schema: pa.Schema = self._file.schema_arrow
        self._where = where
        self.footer: pq.FileMetaData = self._file.metadata
        if self.footer.num_rows > MAX_ROWS:
            raise pa.ArrowInvalid(f"it has {self.footer.num_rows:,} rows, over the limit of {MAX_ROWS:,}")

    def batches(self, number: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows of one row group in batches of at most 256 MiB, however far their encoding is compressed.

        A row of over 256 MiB is a batch of its own.

        Args:
            number: Row group, from 0.
            columns: Names of columns, or paths such as `audio.path`.

        Raises:
            UserError: A column has an extension type.
            pa.ArrowException: The row group is damaged or too large.
        """
        check_plain(self.schema, columns, self._where)
        pages = [each for _, each in self._pages(number, columns)]
        most = self.footer.row_group(number).num_rows
        for each in pages:
            if each.values > most:  # lists, of which one row may have any number of values
                _check_bytes(each.most, number)
        rows = _BATCH_BYTES // max(1, sum(each.longest for each in pages))
        rows = max(1, min(_BATCH_ROWS, rows))
        for batch in self._file.iter_batches(rows, row_groups=[number], columns=list(columns)):
            batch.validate(full=True)  # else invalid UTF-8 raises only when it becomes a Python value
            yield batch
        self._window.forget()

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
        """All row groups of a file. Raises as `batches`.

        Row groups are decoded whole where no dictionary can expand them beyond the limit: the index of a million
        utterances would take minutes in batches.
        """
        check_plain(self.schema, columns, self._where)
        tables = [self.schema.empty_table().select(list(columns))]
        for number in range(self.footer.num_row_groups):
            if self._most_bytes(number, columns) > MAX_ROW_GROUP_BYTES:
                tables.append(self.read_row_group(number, columns))
            else:
                tables.append(self._file.read_row_group(number, columns=list(columns)))
            self._window.forget()
        return pa.concat_tables(tables)

    def _most_bytes(self, number: int, columns: Sequence[str]) -> int:
        """The most bytes that a row group may decode to: its pages, and what is repeated."""
        pages = [(chunk.path_in_schema, each) for chunk, each in self._pages(number, columns)]
        most = sum(each.most for _, each in pages)
        if most <= MAX_ROW_GROUP_BYTES or len(dict(pages)) < len(pages):
            return most
        # By the longest entries of dictionaries, which takes milliseconds to know.
        large = {path: each.indexed for path, each in pages if each.indexed and each.most > _BATCH_BYTES}
        longest = longest_repeated(self._window, self.footer, number, large)
        return sum(each.size + each.values * longest[path] if path in longest else each.most for path, each in pages)

    def _pages(self, number: int, columns: Sequence[str]) -> list[tuple[pq.ColumnChunkMetaData, Pages]]:
        """The columns of a row group that are read, and their pages. Raises ArrowInvalid where they are too large."""
        group = self.footer.row_group(number)
        self._window.forget()
        found = []
        for chunk in map(group.column, range(group.num_columns)):
            with _damaged_names():
                path = chunk.path_in_schema
            if any(path == column or path.startswith(f"{column}.") for column in columns):
                found.append((chunk, self._window.pages(chunk)))
        _check_bytes(sum(each.size for _, each in found), number)
        return found


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
    return ParquetReader(pa.OSFile(str(path)), str(path))


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
