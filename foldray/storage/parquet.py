"""Parquet files of a store: the only module of `foldray.data` and of its sources that opens one for reading.

Sources may be anybody's files, so whatever a file must not contain (pickled extension types, sizes beyond a bound) is
to be refused here.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage

Filters: TypeAlias = list[tuple[str, str, str]]
"""Conditions on columns, as pyarrow takes them: (column, operator, value)."""


@contextlib.contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file opened for reading by row groups.

    Raises:
        FileNotFoundError: The file does not exist.
        pa.ArrowException: The file is damaged, or is not Parquet.
    """
    with storage.open_file(uri) as file:
        yield pq.ParquetFile(file)


def parse_parquet(data: bytes) -> pq.ParquetFile:
    """A Parquet file in memory, whose pages are verified against their checksums as they are read."""
    return pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)


def read_table(uri: str, columns: Sequence[str] | None = None, filters: Filters | None = None) -> pa.Table:
    """The rows of a file that match `filters`, with `columns` (None: all)."""
    with storage.open_file(uri) as file:
        return pq.read_table(file, columns=columns and list(columns), filters=filters)


def read_footer(uri: str) -> pq.FileMetaData:
    """The footer of a file: its schema, and where each row group and column lies."""

    def read() -> pq.FileMetaData:
        with storage.open_file(uri) as file:
            return pq.read_metadata(file)

    return storage.retrying(read, uri)


def read_row_group(
    uri: str, number: int, columns: Sequence[str], *, footer: pq.FileMetaData | None = None, verify: bool = False
) -> pa.Table:
    """One row group of a file.

    Args:
        uri: The file.
        number: Row group, from 0.
        columns: Names of the columns to read.
        footer: The footer if it is known, which saves two requests to an object store.
        verify: Whether pages are verified against their checksums.
    """

    def read() -> pa.Table:
        with storage.open_file(uri) as file:
            parquet = pq.ParquetFile(file, metadata=footer, page_checksum_verification=verify)
            return parquet.read_row_group(number, columns=list(columns))

    return storage.retrying(read, uri)


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one file, so that no reader ever sees half of it."""
    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())
