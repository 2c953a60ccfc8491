"""Result rows and hypotheses: their columns, and the immutable Parquet files, one for each evaluation."""

import io
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.storage.layout import Store
from foldray.storage.parquet import as_schema, open_local

SCHEMA_VERSION = 1
_READERS = 4
"""Files that are read in parallel."""

Kind = Literal["results", "hypotheses"]
"""The two kinds of files, which are also their folders in a store."""


class ResultRow(TypedDict):
    """One depth of a run on one test set. WER and CER are fractions, times are wall seconds."""

    schema_version: int
    run_id: str
    kind: Literal["fold", "baseline"]  # baseline: a single depth, nothing shared
    recipe: str
    family: str
    path: str  # physical layers in running order, such as "0 0 1 1"
    private: str
    alpha: float
    beta: float
    num_layers: int
    depth: int
    trained: bool  # False: the fold's order was extended to a depth that training did not run
    decoding: (
        str  # "ctc" (greedy), "attention", "joint", or "beam-50…", see `foldray.evaluation.word_scores.WordSearch`
    )
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
    rtfx: float  # audio seconds per wall second: features, model and decoding
    peak_rss_bytes: int  # largest resident memory of the process while this depth was scored
    train_seconds: float
    train_audio_seconds: float
    step: int
    seed: int
    device: str
    precision: str  # of the stored weights: "float32" or "int8"; both compute in float32
    created: str  # ISO 8601, UTC
    versions: str  # JSON object of package versions
    git_commit: str
    spec_hash: str


class Hypothesis(TypedDict):
    """The decoder's output for one utterance at one depth, and its word errors."""

    run_id: str
    step: int
    depth: int
    corpus: str
    split: str
    decoding: str
    id: str
    speaker: str  # "" if the corpus names no speakers
    reference: str
    hypothesis: str
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    alignment: str  # "C", "S", "D" or "I" for each step, see `foldray.results.alignment`
    created: str  # equal to that of its result row


EVALUATION = ("run_id", "step", "depth", "corpus", "split", "decoding")
"""The key of an evaluation: a newer row with the same values replaces an older one."""
NEWEST = f"row_number() OVER (PARTITION BY {', '.join(EVALUATION)} ORDER BY created DESC) = 1"
"""In SQL: whether a row of `results` is the newest of its evaluation."""

_TYPES: dict[Any, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _schema(row: type) -> pa.Schema:
    return pa.schema([(name, _TYPES.get(kind, pa.string())) for name, kind in get_type_hints(row).items()])


SCHEMAS: dict[Kind, pa.Schema] = {"results": _schema(ResultRow), "hypotheses": _schema(Hypothesis)}


def write_rows(store: str, rows: Sequence[ResultRow], hypotheses: Sequence[Hypothesis]) -> None:
    """Append one evaluation to a store.

    Hypotheses are written first, so that a reader who finds the rows finds their hypotheses too.
    """
    name = f"{rows[0]['run_id']}-{uuid.uuid4().hex[:12]}.parquet"
    _write(storage.join(Store(store).hypotheses, name), SCHEMAS["hypotheses"], hypotheses)
    _write(storage.join(Store(store).results, name), SCHEMAS["results"], rows)


def _write(uri: str, schema: pa.Schema, rows: Sequence[Mapping[str, object]]) -> None:
    for row in rows:
        if row.keys() != set(schema.names):  # pyarrow would write null and drop what it does not know
            raise ValueError(f"{uri}: columns missing or unknown: {', '.join(sorted(row.keys() ^ set(schema.names)))}")
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([*rows], schema), target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())


def read_files(kind: Kind, files: Sequence[Path]) -> pa.Table:
    """Read the rows of local files: the only place that opens Parquet files of results.

    Unknown columns are ignored, and so are rows without a `run_id`, as in files of other programs. Raises UserError
    naming the first damaged file.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        tables = pool.map(lambda path: _read(kind, path), files)
        return pa.concat_tables([SCHEMAS[kind].empty_table(), *tables])


def _read(kind: Kind, path: Path) -> pa.Table:
    """The rows of one file. Raises UserError where it is damaged, or a row of ours lacks a value."""
    schema = SCHEMAS[kind]
    try:
        reader = open_local(path)
        if "run_id" not in reader.schema.names:
            return schema.empty_table()
        names = [name for name in schema.names if name in reader.schema.names]
        groups = [reader.read_row_group(group, names) for group in range(reader.footer.num_row_groups)]
        table = pa.concat_tables(groups) if groups else reader.schema.empty_table().select(names)
        table = as_schema(table.filter(table["run_id"].is_valid()), schema)
        if unsafe := [name for name in table["run_id"].unique().to_pylist() if not storage.is_plain(name)]:
            raise pa.ArrowInvalid(f"{unsafe[0]!r} is not the id of a run")
        return table
    except (pa.ArrowException, OSError) as error:
        raise UserError(str(path), f"can't be read as {kind} ({one_line(error)}); move it away") from None
