"""The manifest of a prepared corpus: what was kept, where it lies, what was not kept and why."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from foldray import storage
from foldray.errors import UserError
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import MANIFEST_FILE, PreparedCorpus

SHARD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.binary()),  # FLAC, 16 kHz, mono, 16 bit
        ("num_samples", pa.int64()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
        ("num_samples", pa.int64()),
        ("num_labels", pa.int32()),
        ("num_repeats", pa.int32()),  # labels equal to the one before, between which CTC needs a blank
        ("offset", pa.int64()),  # first byte of the row group in its shard
        ("bytes", pa.int64()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class Shard(BaseModel):
    """One Parquet file of utterances of one split and duration bucket."""

    model_config = ConfigDict(frozen=True)
    file: str
    split: str
    rows: int
    seconds: float
    bytes: int
    sha256: str
    languages: list[str] = []


class Manifest(BaseModel):
    """Written last, so a corpus folder that has one is whole."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)
    schema_version: int = 1
    corpus_id: str
    source: str
    layout: str
    utterances_in: int
    utterances_out: int
    quarantined: int
    reasons: dict[str, int]
    hours: float
    vocabulary: list[str]
    subwords: str | None = Field(None, alias="tokenizer")  # JSON of the `tokenizers` library
    shards: list[Shard]

    @property
    def rows_by_split(self) -> dict[str, int]:
        """Utterances of each split."""
        rows: dict[str, int] = {}
        for shard in self.shards:
            rows[shard.split] = rows.get(shard.split, 0) + shard.rows
        return rows

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the transcripts."""
        return Tokenizer(self.vocabulary, self.subwords)


@dataclass(frozen=True)
class SplitIndex:
    """The utterances of one split as columns of equal length N, shard by shard and row group by row group."""

    corpus: str  # URI of the corpus folder
    files: list[str]  # shard files by number
    ids: pa.ChunkedArray
    shard: npt.NDArray[np.int32]
    row_group: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    num_samples: npt.NDArray[np.int64]
    num_labels: npt.NDArray[np.int32]
    num_repeats: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.shard)

    @cached_property
    def groups(self) -> npt.NDArray[np.int64]:
        """Where each row group begins, and the end, (G + 1,)."""
        changes = (np.diff(self.shard, prepend=-1) != 0) | (np.diff(self.row_group, prepend=-1) != 0)
        return np.append(np.flatnonzero(changes), len(self))

    def group_of(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of each position's row group within the split."""
        return np.searchsorted(self.groups, positions, side="right") - 1

    @cached_property
    def bucket_of_shard(self) -> npt.NDArray[np.int64]:
        """A number for each shard's split and duration bucket, which its file is named by."""
        names = [file.rsplit("-", 1)[0] for file in self.files]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)


def read_manifest(corpus: str) -> Manifest:
    """The manifest of a prepared corpus. Raises UserError where there is none."""
    file = PreparedCorpus(corpus).manifest
    if not storage.exists(file):
        raise UserError(corpus, f"is no prepared corpus ({MANIFEST_FILE} is missing); run `foldray prepare`")
    return Manifest.model_validate(storage.read_json(file))


def read_quarantine(corpus: str) -> list[dict[str, str]]:
    """Entries of the quarantine: id, split, source, reason, detail."""
    data = storage.read_bytes(PreparedCorpus(corpus).quarantine)
    entries: list[dict[str, str]] = pq.read_table(pa.BufferReader(data)).to_pylist()
    return entries


def read_index(corpus: str, manifest: Manifest, split: str) -> SplitIndex:
    """The index of one split. Raises UserError for a split the corpus lacks."""
    wanted = [name for name in INDEX_SCHEMA.names if name not in ("split", "offset", "bytes")]
    with storage.open_file(PreparedCorpus(corpus).index) as file:
        table = pq.read_table(file, columns=wanted, filters=[("split", "=", split)])
    if not table.num_rows:
        known = ", ".join(sorted({shard.split for shard in manifest.shards}))
        raise UserError(corpus, f"has no utterances in split '{split}'; it has {known}")
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in wanted if name != "id"}
    return SplitIndex(corpus, [shard.file for shard in manifest.shards], table["id"], **columns)
