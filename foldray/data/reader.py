"""Reading shards back: rows by their position in the index, each row group once."""

import functools
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.data.epoch import MicroBatch
from foldray.data.manifest import SplitIndex
from foldray.errors import UserError, one_line
from foldray.storage.layout import PreparedCorpus

CACHE_BYTES = 1024 * 2**20
"""Most encoded audio that is kept. A worker that has all lanes needs about eight windows of 1,600 s (epoch.py), some
250 MB; only epochs from short to long, and micro-batches of ten minutes, may need more, and read it again."""
READING_THREADS = 8


class RowReader:
    """Rows of a split by position.

    A row group is read once, by threads of its own, kept while rows of it are still expected, and let go
    with the last; at most `CACHE_BYTES` of them stay, still encoded, whatever is expected.
    """

    def __init__(self, index: SplitIndex) -> None:
        self._index = index
        self._groups: OrderedDict[int, Future[list[dict[str, Any]]]] = OrderedDict()
        self._expected: npt.NDArray[np.int64] | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="row groups")

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Say which rows will be asked for, each once: what none of them lies in need not be kept."""
        counts = np.bincount(self._index.group_of(positions), minlength=len(self._index.groups) - 1)
        with self._lock:
            self._expected = counts
            for group in [group for group in self._groups if not counts[group]]:
                del self._groups[group]

    @property
    def held(self) -> int:
        """How many row groups are kept."""
        return len(self._groups)

    def prefetch(self, positions: MicroBatch) -> None:
        """Begin to read the row groups of these positions."""
        with self._lock:
            for group in np.unique(self._index.group_of(positions)):
                self._reading(int(group))

    def __call__(self, position: int) -> dict[str, Any]:
        """The row (id, audio, text) at a position of the index."""
        group = int(self._index.group_of(np.array(position)))
        with self._lock:
            reading = self._reading(group)
            if self._expected is not None:
                self._expected[group] -= 1
                if self._expected[group] <= 0:
                    del self._groups[group]
        return reading.result()[int(self._index.row[position])]

    def _reading(self, group: int) -> Future[list[dict[str, Any]]]:
        """The row group, read or being read; with the lock held."""
        if group not in self._groups:
            first = self._index.groups[group]
            file = self._index.files[self._index.shard[first]]
            number = int(self._index.row_group[first])
            self._groups[group] = self._pool.submit(read_row_group, self._index.corpus, file, number)
            self._make_room()
        self._groups.move_to_end(group)
        return self._groups[group]

    def _make_room(self) -> None:
        held = {group: _size(each) for group, each in self._groups.items()}
        total = sum(held.values())
        for group in list(self._groups)[:-1]:
            if total > CACHE_BYTES and held[group]:  # what is still being read holds nothing yet
                total -= held[group]
                del self._groups[group]


def _size(reading: Future[list[dict[str, Any]]]) -> int:
    """Bytes of a row group that has been read."""
    if not reading.done() or reading.exception():
        return 0
    return sum(len(row["audio"]) for row in reading.result())


def read_row_group(corpus: str, file: str, number: int) -> list[dict[str, Any]]:
    """Rows (id, audio, text, speaker) of one row group, checked against the checksums of its pages.

    Raises UserError naming a shard that is missing or damaged.
    """
    uri = PreparedCorpus(corpus).file(file)

    def read() -> list[dict[str, Any]]:
        with storage.open_file(uri) as opened:
            parquet = pq.ParquetFile(opened, metadata=_footer(uri), page_checksum_verification=True)
            columns = ["id", "audio", "text", "speaker"]
            rows: list[dict[str, Any]] = parquet.read_row_group(number, columns=columns).to_pylist()
            return rows

    try:
        return storage.retrying(read, uri)
    except FileNotFoundError:
        raise UserError(uri, "is missing; run `foldray prepare` again, which makes it anew") from None
    except (pa.ArrowInvalid, OSError) as error:
        if "checksum" in str(error) or isinstance(error, pa.ArrowInvalid):
            mend = f"{one_line(error, 120)}; delete it and run `foldray prepare` again"
            raise UserError(uri, f"is damaged: {mend}") from None
        raise


@functools.lru_cache(maxsize=4096)
def _footer(uri: str) -> Any:
    """Footers are read once: a shard's row groups come one by one, hours apart."""

    def read() -> Any:
        with storage.open_file(uri) as opened:
            return pq.read_metadata(opened)

    return storage.retrying(read, uri)
