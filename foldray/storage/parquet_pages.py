"""The pages of a Parquet column by their own headers: Arrow decodes what those say, whatever the footer says.

A header is a struct of Thrift's compact protocol (parquet.thrift, PageHeader). Only the fields that bound the size of
what is decoded are kept; parsing agrees with Thrift, in which the last field of a kind counts and others are skipped.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_PADDING = 100
"""Bytes behind a column that Arrow reads too, of files by old writers (PARQUET-816)."""
_INT, _BINARY, _STRUCT = 5, 8, 12
_DICTIONARY_PAGE = 2
_DICTIONARY, _PREFIXES = (2, 8), (7,)
"""Encodings whose values are indices of a dictionary, or share a beginning with the value before."""
_MOST_DEPTH = 8


class _File(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...


class Pages(NamedTuple):
    """What the pages of one column chunk decode to.

    Attributes:
        size: Bytes of all pages, decompressed.
        longest: Most bytes of one value.
        values: How many values there are.
        repeats: Whether a value of any length may be stored once for many rows.
        indexed: The number of entries of a dictionary that its first data page uses; 0 without one.
    """

    size: int
    longest: int
    values: int
    repeats: bool
    indexed: int

    @property
    def most(self) -> int:
        """The most bytes that all values may take; 16 are those of a number, or of the place of a text."""
        return self.size + self.values * (self.longest if self.repeats else 16)


class Window:
    """A file for Arrow, whose column chunks are read once: they are looked at here before Arrow decodes them."""

    closed = False

    def __init__(self, file: Any) -> None:
        """Take a binary file that can be read at any position."""
        self._file: _File = file
        self._position = 0
        self._kept: dict[int, memoryview] = {}

    def pages(self, chunk: pq.ColumnChunkMetaData) -> Pages:
        """Read a column chunk, and keep it for Arrow. Raises pa.ArrowInvalid for a damaged header of a page."""
        start, first = chunk.data_page_offset, chunk.dictionary_page_offset
        if first is not None and 0 < first < start:
            start = first
        if start < 0 or chunk.total_compressed_size < 0:
            raise pa.ArrowInvalid("a column has a negative place")
        if start not in self._kept:
            self._file.seek(start)
            self._kept[start] = memoryview(self._file.read(chunk.total_compressed_size + _PADDING))
        fixed = chunk.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        return _pages(self._kept[start], chunk.num_values, fixed=fixed)

    def forget(self) -> None:
        """Free the chunks that are kept."""
        self._kept.clear()

    def read(self, size: int = -1) -> bytes | memoryview:
        """Read from the chunks that are kept, and anything else from the file."""
        position = self._position
        for start, data in self._kept.items():
            if start <= position and size >= 0 and position + size <= start + len(data):
                self._position += size
                return data[position - start : position - start + size]
        self._file.seek(position)
        found = self._file.read(size)
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position, as files do."""
        self._position = offset if whence == 0 else self._file.seek(0, 2) + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def close(self) -> None:
        """Leave the file to its owner."""


def _pages(data: memoryview, values: int, *, fixed: bool) -> Pages:
    """What the pages of a chunk with so many values decode to; Arrow stops at this number too."""
    position = size = largest = found = entries = 0
    begins: int | None = None
    repeats = prefixes = False
    try:
        while found < values and position < len(data):
            header = _Thrift(data, position)
            page = header.struct()
            position = header.position + _positive(page[3, _INT])
            bytes_ = _positive(page[2, _INT])
            size, largest = size + bytes_, max(largest, bytes_)
            if page[1, _INT] == _DICTIONARY_PAGE:
                entries = page[7, _STRUCT][1, _INT]
                continue
            v1, v2 = page.get((5, _STRUCT)), page.get((8, _STRUCT))
            if page[1, _INT] in (0, 3):
                described: Any = v1 if page[1, _INT] == 0 else v2
                found += _positive(described[1, _INT])
                encoding = described[2 if described is v1 else 4, _INT]
                begins = encoding if begins is None else begins
                repeats, prefixes = repeats or encoding in _DICTIONARY, prefixes or encoding in _PREFIXES
    except (IndexError, KeyError, TypeError, ValueError):
        raise pa.ArrowInvalid("the header of a page is damaged") from None
    # A value lies in one page; with prefixes, it may have begun in the pages before.
    longest = 16 if fixed else size if prefixes else largest
    known = begins in _DICTIONARY and not fixed and not prefixes
    return Pages(size, longest, found, repeats or prefixes, entries if known else 0)


def longest_repeated(
    window: Window, footer: pq.FileMetaData, number: int, indexed: Mapping[str, int]
) -> dict[str, int]:
    """The bytes of the longest entry in the dictionaries of columns, by path; those that can't be told are missing.

    Arrow reads a dictionary with the first page that uses it, so one row of each column is enough.

    Args:
        window: The file.
        footer: Its footer.
        number: Row group, from 0.
        indexed: The number of entries in the dictionary that a column's first page uses, by path.
    """
    if not indexed:
        return {}
    file = pq.ParquetFile(window, metadata=footer, read_dictionary=[*indexed])  # noqa: TID251  # no value is used
    batch = next(file.iter_batches(1, row_groups=[number], columns=[*indexed]), None)
    found = {}
    for path, entries in indexed.items():
        column = batch.column(path) if batch is not None and path in batch.schema.names else None
        if isinstance(column, pa.DictionaryArray) and len(column.dictionary) == entries:
            found[path] = int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    return found


def _positive(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return number


class _Thrift:
    """A reader of Thrift's compact protocol, whose integers have 32 bits here."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data, self.position = data, position

    def struct(self, depth: int = 0) -> dict[tuple[int, int], Any]:
        """Read integers and structs by field and type; all other fields are skipped."""
        fields: dict[tuple[int, int], Any] = {}
        field = 0
        while byte := self._byte():
            kind, delta = byte & 15, byte >> 4
            field = field + delta if delta else self._integer()
            value = self._value(kind, depth)
            if kind in (_INT, _STRUCT):
                fields[field, kind] = value
        return fields

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number without end")

    def _integer(self) -> int:
        value = self._varint() & 0xFFFFFFFF
        return value >> 1 ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self._data):
            raise IndexError

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MOST_DEPTH:
            raise ValueError("nested too deeply")
        if kind in (4, _INT, 6):
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == _BINARY:
            self._skip(self._varint())
        elif kind in (3, 7):
            self._skip(1 if kind == 3 else 8)
        elif kind in (9, 10):  # lists and sets
            head = self._byte()
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._value(3 if head & 15 in (1, 2) else head & 15, depth + 1)
        elif kind not in (1, 2):  # true and false
            raise ValueError(kind)
        return None
