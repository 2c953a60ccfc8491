"""The files of a prepared corpus: manifest, index, shards and quarantine, their schemas and how they are read."""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from foldray import storage
from foldray.config.corpus import TextProfile
from foldray.data.utterance import Utterance
from foldray.errors import UserError, scrubbed
from foldray.models.tokenizer import SpecialTokens, Tokenizer
from foldray.storage.layout import MANIFEST_FILE, PreparedCorpus
from foldray.storage.parquet import read_table
from foldray.storage.records import read_as

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


class QuarantineEntry(TypedDict):
    """One utterance that is not used: a row of the quarantine table."""

    id: str
    split: str
    source: str  # where the source describes it, relative to the corpus folder
    reason: str  # a code, listed in docs/DATA.md
    detail: str


def quarantine_entry(utterance: Utterance, reason: str, detail: str, home: str) -> QuarantineEntry:
    """A row of the quarantine table, without secrets, and with paths relative to the corpus folder `home`."""
    audio = utterance.audio
    return {
        "id": scrubbed(utterance.id),
        "split": utterance.split,
        "source": scrubbed(storage.relative(utterance.row, home)),
        "reason": reason,
        "detail": scrubbed(detail.replace(audio, storage.relative(audio, home)) if audio else detail),
    }


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

    @field_validator("file")
    @classmethod
    def _is_inside(cls, file: str) -> str:
        if not storage.is_relative(file):
            raise ValueError("must be the path of a file in the corpus folder")
        return file


class LeftOut(BaseModel):
    """What text normalisation left out of the utterances that are used: counts, before decoding.

    Attributes:
        utterances: Utterances whose text lost something.
        words: Words of which nothing is left.
        letters: Letters outside the profile.
        digits: Digits outside the profile.
        signs: Signs that are spoken, such as % and $.
        characters: The ten commonest of all these, with their counts.
    """

    model_config = ConfigDict(frozen=True)
    utterances: int = 0
    words: int = 0
    letters: int = 0
    digits: int = 0
    signs: int = 0
    characters: dict[str, int] = {}

    @classmethod
    def of(cls, characters: Counter[str], words: int, utterances: int) -> "LeftOut":
        """Sum up counted characters."""
        kinds = Counter[str]()
        for character, count in characters.items():
            kinds[unicodedata.category(character)[0]] += count
        return cls(
            utterances=utterances,
            words=words,
            letters=kinds["L"],
            digits=kinds["N"],
            signs=characters.total() - kinds["L"] - kinds["N"],
            characters=dict(sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:10]),
        )


class Manifest(BaseModel):
    """What a prepared corpus contains. It is written last, so a corpus folder that has one is complete."""

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
    left_out: LeftOut = LeftOut()
    vocabulary: list[str]
    subwords: str | None = Field(None, alias="tokenizer")  # JSON of the `tokenizers` library
    special: SpecialTokens | None = None
    text: TextProfile | None = None
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
        return Tokenizer(self.vocabulary, self.subwords, self.special)


@dataclass(frozen=True)
class SplitIndex:
    """The utterances of one split as columns of equal length N, shard by shard and row group by row group."""

    corpus: str  # URI of the prepared corpus
    files: list[str]  # shard files by number, relative to it
    ids: pa.ChunkedArray  # of strings
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
        """Position of the first utterance of each row group, and N, (G + 1,)."""
        changes = (np.diff(self.shard, prepend=-1) != 0) | (np.diff(self.row_group, prepend=-1) != 0)
        return np.append(np.flatnonzero(changes), len(self))

    def group_of(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of each position's row group within the split."""
        return np.searchsorted(self.groups, positions, side="right") - 1

    @cached_property
    def bucket_of_shard(self) -> npt.NDArray[np.int64]:
        """A number for each shard's split and duration bucket, both of which are in its file name."""
        names = [file.rsplit("-", 1)[0] for file in self.files]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)


def read_manifest(corpus: str) -> Manifest:
    """The manifest of a prepared corpus. Raises UserError if the folder has none, or naming the field that is wrong."""
    file = PreparedCorpus(corpus).manifest
    if not storage.exists(file):
        raise UserError(corpus, f"is not a prepared corpus ({MANIFEST_FILE} is missing); run `foldray prepare`")
    return read_as(Manifest, file)


def read_quarantine(corpus: str) -> list[QuarantineEntry]:
    """The entries of the quarantine table."""
    entries: list[QuarantineEntry] = read_table(PreparedCorpus(corpus).quarantine, QUARANTINE_SCHEMA).to_pylist()
    return entries


def read_index(corpus: str, manifest: Manifest, split: str) -> SplitIndex:
    """The index of one split. Raises UserError for a split that the corpus does not have."""
    wanted = [name for name in INDEX_SCHEMA.names if name not in ("split", "offset", "bytes")]
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in wanted])
    table = read_table(PreparedCorpus(corpus).index, schema, filters=[("split", "=", split)])
    if not table.num_rows:
        known = ", ".join(sorted({shard.split for shard in manifest.shards}))
        raise UserError(corpus, f"has no utterances in split '{split}'; it has {known}")
    columns = {name: table[name].to_numpy() for name in wanted if name != "id"}
    return SplitIndex(corpus, [shard.file for shard in manifest.shards], table["id"], **columns)
