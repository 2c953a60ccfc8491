"""Result rows and hypotheses: one immutable Parquet file for each evaluation, so that writers never collide."""

import io
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from foldray import storage
from foldray.storage.layout import Store

SCHEMA_VERSION = 5


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
    precision: str = Field(description="of the stored weights: float32 or int8; both compute in float32")
    created: str
    versions: str = Field(description="JSON object of package versions")
    git_commit: str
    spec_hash: str


class Hypothesis(BaseModel):
    """What one depth made of one utterance, and its word errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run_id: str
    step: int | None = Field(None, description="of its result row; null in files older than version 4")
    depth: int
    corpus: str
    split: str
    decoding: str = "ctc"
    id: str
    speaker: str | None = Field(None, description="empty where the corpus names none; null before version 5")
    reference: str
    hypothesis: str
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    alignment: str = Field(description="C, S, D or I for each step")
    created: str = Field(description="of the evaluation, as in its result rows")


_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    int | None: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}
_SINCE_VERSION_2 = {"trained": pa.scalar(True), "decoding": pa.scalar("ctc")}
"""Columns that version 1 lacks, with what they were then."""


def _schema(model: type[BaseModel]) -> pa.Schema:
    return pa.schema([(name, _TYPES.get(f.annotation, pa.string())) for name, f in model.model_fields.items()])


SCHEMAS = {"results": _schema(ResultRow), "hypotheses": _schema(Hypothesis)}
"""The two kinds of files, by their folders in a store."""


def write_rows(store: str, rows: Sequence[ResultRow], hypotheses: Sequence[Hypothesis]) -> None:
    """Append one evaluation: hypotheses first, so that whoever sees the rows finds them too."""
    name = f"{rows[0].run_id}-{uuid.uuid4().hex[:12]}.parquet"
    _write(storage.join(Store(store).hypotheses, name), SCHEMAS["hypotheses"], hypotheses)
    _write(storage.join(Store(store).results, name), SCHEMAS["results"], rows)


def _write(uri: str, schema: pa.Schema, records: Sequence[BaseModel]) -> None:
    target = io.BytesIO()
    table = pa.Table.from_pylist([record.model_dump() for record in records], schema)
    pq.write_table(table, target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())


EVALUATION = ("run_id", "step", "depth", "corpus", "split", "decoding")
"""What is scored once: another row of the same replaces the one before."""
