"""Result rows and hypotheses: one immutable Parquet file for each evaluation, so that writers never collide."""

import io
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from foldray import storage

SCHEMA_VERSION = 2


class ResultRow(BaseModel):
    """One (run, depth, test set). WER and CER are fractions, times are wall seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = SCHEMA_VERSION
    run_id: str
    kind: Literal["fold", "baseline"] = Field(description="baseline: a single depth, nothing shared")
    recipe: str
    family: str
    path: str = Field(description="physical layers in running order, such as '0 0 1 1'")
    private: str
    alpha: float
    beta: float
    num_layers: int
    depth: int
    trained: bool = Field(True, description="whether training ran this depth, or the fold's rule was stretched to it")
    decoding: str = Field("ctc", description="ctc (greedy), attention or joint")
    order: str
    corpus: str
    split: str
    language: str
    wer: float
    cer: float
    num_utterances: int
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    params_stored: int
    params_unrolled: int
    bytes_stored: int
    macs_per_audio_second: float
    rtfx: float = Field(description="audio seconds per wall second: features, model and decoding")
    peak_rss_bytes: int = Field(description="largest resident memory of the process while this depth was scored")
    train_seconds: float
    train_audio_seconds: float
    step: int
    seed: int
    device: str
    precision: str
    created: str
    versions: str = Field(description="JSON object of package versions")
    git_commit: str
    spec_hash: str


class Hypothesis(BaseModel):
    """What one depth made of one utterance, and its word errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run_id: str
    depth: int
    corpus: str
    split: str
    decoding: str = "ctc"
    id: str
    reference: str
    hypothesis: str
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    created: str = Field(description="of the evaluation, as in its result rows")


_TYPES: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_ADDED = {"trained": True, "decoding": "ctc"}
"""Columns that version 1 lacks, with what they were then."""


def _schema(model: type[BaseModel]) -> pa.Schema:
    return pa.schema([(name, _TYPES.get(f.annotation, pa.string())) for name, f in model.model_fields.items()])


def write_rows(store: str, rows: Sequence[ResultRow], hypotheses: Sequence[Hypothesis]) -> None:
    """Append one evaluation: hypotheses first, so that whoever sees the rows finds them too."""
    name = f"{rows[0].run_id}-{uuid.uuid4().hex[:12]}.parquet"
    _write(storage.join(store, "hypotheses", name), Hypothesis, hypotheses)
    _write(storage.join(store, "results", name), ResultRow, rows)


def _write(uri: str, model: type[BaseModel], records: Sequence[BaseModel]) -> None:
    target = io.BytesIO()
    table = pa.Table.from_pylist([record.model_dump() for record in records], _schema(model))
    pq.write_table(table, target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())


def read_rows(store: str) -> list[dict[str, Any]]:
    """All result rows of a store, oldest first, those of older schema versions with today's columns."""
    return sorted(
        ({**_ADDED, **row} for row in _read(store, "results")),
        key=lambda row: (row["created"], row["run_id"], row["depth"]),
    )


def read_hypotheses(store: str, run_id: str) -> list[dict[str, Any]]:
    """Every hypothesis of a run."""
    return [{"decoding": "ctc", **row} for row in _read(store, "hypotheses", run_id) if row["run_id"] == run_id]


def _read(store: str, folder: str, prefix: str = "") -> list[dict[str, Any]]:
    place = storage.join(storage.absolute(store), folder)
    names = [name for name in storage.list_files(place) if name.endswith(".parquet") and name.startswith(prefix)]
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(place, name)))) for name in names]
    rows: list[dict[str, Any]] = []
    for table in tables:
        rows.extend(table.to_pylist())
    return rows


def newest_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each (run, step, depth, corpus, split, decoding): scoring again replaces, the files stay."""
    newest = {
        tuple(row[name] for name in ("run_id", "step", "depth", "corpus", "split", "decoding")): row for row in rows
    }
    return list(newest.values())
