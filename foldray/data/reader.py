"""Reading prepared shards: rows by their position in the index, each row group once."""

import functools
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foldray.data.epoch import MicroBatch
from foldray.data.manifest import SHARD_SCHEMA, SplitIndex
from foldray.errors import UserError, one_line
from foldray.storage.layout import PreparedCorpus
from foldray.storage.parquet import as_schema, read_footer, read_row_group

CACHE_BYTES = 1024 * 2**20
"""Most encoded audio that is cached. A worker that reads all lanes needs about eight windows of 1,600 s (epoch.py),
some 250 MB; only epochs sorted by length, and micro-batches of ten minutes, may need more, and read it again."""
READING_THREADS = 8
_FOOTERS_CACHED = 4096


class Row(TypedDict):
    """The columns of a shard that training and scoring read."""

    id: str
    audio: bytes  # FLAC, 16 kHz, mono, 16 bit
    text: str
    speaker: str
    language: str


class RowReader:
    """Rows of a split by position in its index.

    A row group is read once, by background threads, and dropped with the last row that is expected of it. At most
    `CACHE_BYTES` of encoded audio stay, whatever is expected.
    """

    def __init__(self, index: SplitIndex) -> None:
        self._index = index
        self._groups: OrderedDict[int, Future[list[Row]]] = OrderedDict()
        self._expected: npt.NDArray[np.int64] | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="row groups")

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Declare the rows that will be read, each once. Row groups without any of them are dropped."""
        counts = np.bincount(self._index.group_of(positions), minlength=len(self._index.groups) - 1)
        with self._lock:
            self._expected = counts
            for group in [group for group in self._groups if not counts[group]]:
                del self._groups[group]

    @property
    def num_cached(self) -> int:
        """How many row groups are cached."""
        return len(self._groups)

    def prefetch(self, positions: MicroBatch) -> None:
        """Start reading the row groups of these positions."""
        with self._lock:
            for group in np.unique(self._index.group_of(positions)):
                self._reading(int(group))

    def __call__(self, position: int) -> Row:
        """The row at a position of the index. Raises UserError if its shard is missing or damaged."""
        group = int(self._index.group_of(np.array(position)))
        with self._lock:
            reading = self._reading(group)
            if self._expected is not None:
                self._expected[group] -= 1
                if self._expected[group] <= 0:
                    del self._groups[group]
        return reading.result()[int(self._index.row[position])]

    def _reading(self, group: int) -> Future[list[Row]]:
        """The row group, read or being read. The caller holds the lock."""
        if group not in self._groups:
            first = self._index.groups[group]
            file = self._index.files[self._index.shard[first]]
            number = int(self._index.row_group[first])
            self._groups[group] = self._pool.submit(read_rows, self._index.corpus, file, number)
            self._make_room()
        self._groups.move_to_end(group)
        return self._groups[group]

    def _make_room(self) -> None:
        sizes = {group: _size(each) for group, each in self._groups.items()}
        total = sum(sizes.values())
        for group in list(self._groups)[:-1]:
            if total > CACHE_BYTES and sizes[group]:  # a row group that is still being read takes no memory yet
                total -= sizes[group]
                del self._groups[group]


def _size(reading: Future[list[Row]]) -> int:
    """Bytes of audio of a row group that has been read, else 0."""
    if not reading.done() or reading.exception():
        return 0
    return sum(len(row["audio"]) for row in reading.result())


def read_rows(corpus: str, file: str, number: int) -> list[Row]:
    """The rows of a shard's row group, verified against the checksums of its pages.

    Raises UserError naming a shard that is missing or damaged.
    """
    uri = PreparedCorpus(corpus).file(file)
    schema = pa.schema([SHARD_SCHEMA.field(name) for name in Row.__annotations__])
    try:
        table = read_row_group(uri, number, schema.names, footer=_footer(uri), verify=True)
        rows: list[Row] = as_schema(table, schema).to_pylist()
    except FileNotFoundError:
        raise UserError(uri, "is missing; run `foldray prepare` again to write it") from None
    except (pa.ArrowInvalid, OSError) as error:
        if "checksum" in str(error) or isinstance(error, pa.ArrowInvalid):
            fix = f"{one_line(error, 120)}; delete it and run `foldray prepare` again"
            raise UserError(uri, f"is damaged: {fix}") from None
        raise
    return rows


@functools.lru_cache(maxsize=_FOOTERS_CACHED)
def _footer(uri: str) -> pq.FileMetaData:
    """Footers are read once: a shard's row groups are read one by one, hours apart."""
    return read_footer(uri)
