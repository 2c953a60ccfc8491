"""Result rows and hypotheses: one immutable Parquet file for each evaluation, so that writers never collide."""

import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.results.alignment import align_words
from foldray.results.files import local_files

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
    _write(storage.join(store, "hypotheses", name), SCHEMAS["hypotheses"], hypotheses)
    _write(storage.join(store, "results", name), SCHEMAS["results"], rows)


def _write(uri: str, schema: pa.Schema, records: Sequence[BaseModel]) -> None:
    target = io.BytesIO()
    table = pa.Table.from_pylist([record.model_dump() for record in records], schema)
    pq.write_table(table, target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())


def read_table(store: str, kind: str, run_id: str = "") -> pa.Table:
    """All rows of a kind, or those of one run, with today's columns whatever version wrote them."""
    return read_files(kind, list(local_files(store, kind, run_id)))


def read_files(kind: str, files: Sequence[Path]) -> pa.Table:
    """The rows of files of a kind."""
    if not files:
        return SCHEMAS[kind].empty_table()
    # Columns that a file lacks become null; those of a newer foldray are left alone, and so is what is of no run.
    dataset = ds.dataset([str(path) for path in files], schema=SCHEMAS[kind], format="parquet")
    try:
        table = dataset.to_table(filter=ds.field("run_id").is_valid())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _damaged(kind, files) or error from None
    for name, value in _SINCE_VERSION_2.items():
        if name in table.column_names and table[name].null_count:
            place = table.column_names.index(name)
            table = table.set_column(place, SCHEMAS[kind].field(name), table[name].fill_null(value))
    return _aligned(table) if "alignment" in table.column_names else table


def _damaged(kind: str, files: Sequence[Path]) -> UserError | None:
    """Names the first file that can't be read."""
    for path in files:
        try:
            ds.dataset(str(path), schema=SCHEMAS[kind], format="parquet").to_table()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            return UserError(str(path), f"can't be read as {kind} ({one_line(error)}); move it away")
    return None


def _aligned(table: pa.Table) -> pa.Table:
    """Alignments, which version 3 brought, also for hypotheses from before."""
    if not table["alignment"].null_count:
        return table
    columns = (table[name].to_pylist() for name in ("alignment", "reference", "hypothesis"))
    values = [known or align_words(said, heard) for known, said, heard in zip(*columns, strict=True)]
    return table.set_column(table.column_names.index("alignment"), "alignment", pa.array(values, pa.string()))


def read_rows(store: str, run_id: str = "") -> list[dict[str, Any]]:
    """All result rows, or those of one run, oldest first, also what was scored again since."""
    table = read_table(store, "results", run_id)
    rows: list[dict[str, Any]] = table.sort_by(
        [(name, "ascending") for name in ("created", "run_id", "depth")]
    ).to_pylist()
    return rows


def read_hypotheses(store: str, run_id: str) -> list[dict[str, Any]]:
    """Every hypothesis of a run."""
    rows: list[dict[str, Any]] = read_table(store, "hypotheses", run_id).to_pylist()
    return rows


def newest_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each EVALUATION: scoring again replaces, the files stay. `rows` oldest first."""
    return list({tuple(row[name] for name in EVALUATION): row for row in rows}.values())


EVALUATION = ("run_id", "step", "depth", "corpus", "split", "decoding")
"""What is scored once: another row of the same replaces the one before."""
