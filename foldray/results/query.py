"""Questions to a store: its rows, hypotheses, runs and trials as tables that DuckDB answers from, and nothing else."""

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.results.reader import forget_merged, newest_sql, read_merged
from foldray.results.rows import SCHEMAS
from foldray.results.run_tables import runs_table, trials_table

Row = dict[str, Any]

PLACE = ("corpus", "split", "decoding")
"""What two rows must share to be compared."""
OBJECTIVES = {
    "wer": ("wer", 1), "cer": ("cer", 1), "bytes": ("bytes_stored", 1), "macs": ("macs_per_audio_second", 1),
    "params": ("params_stored", 1), "rtfx": ("rtfx", -1), "memory": ("peak_rss_bytes", 1),
    "train_seconds": ("train_seconds", 1),
}  # fmt: skip
"""What `pareto` weighs: a column, and 1 where less is better, -1 where more is."""
FILTER = re.compile(r"(\w+)(<=|>=|!=|=|<|>|~)(.*)")
DESCRIBED = {"runs": runs_table, "trials": trials_table}
TABLES = ("results", "hypotheses", *DESCRIBED)


def list_rows(
    store: str, filters: Sequence[str] = (), sort: str = "-created", limit: int | None = None
) -> tuple[list[Row], int]:
    """Rows that all filters let through (see `_where`), sorted by columns ('-' before one: largest first), and how many
    there are beyond `limit`. What was scored again since is left out. Raises UserError."""
    where, values = _where(filters)
    order = ", ".join(f"{_column(name.removeprefix('-'))}{' DESC' * name.startswith('-')}" for name in sort.split(","))
    with _connect(store, ["results"]) as connection, _explained("results", store):
        ((total,),) = connection.execute(f"SELECT count(*) FROM results WHERE {where}", values).fetchall()
        # The rest of the order, so that equal values do not dance.
        asked = f"SELECT * FROM results WHERE {where} ORDER BY {order}, run_id, depth, corpus, split, decoding"
        found = _rows(connection.sql(f"{asked} LIMIT {limit}" if limit else asked, params=values))
    return found, total


def pareto(
    store: str, objectives: Sequence[str] = ("wer", "bytes"), filters: Sequence[str] = (), *, dominated: bool = False
) -> list[Row]:
    """The rows that no other row of the same test set and decoding beats in one objective without losing in another.

    objectives: two or three of OBJECTIVES. dominated: all rows, each with a field `dominated`. Raises UserError.
    """
    for name in objectives:
        if name not in OBJECTIVES:
            raise UserError("--of", f"'{name}' is none of {', '.join(OBJECTIVES)}")
    if not 2 <= len(set(objectives)) == len(objectives) <= 3:
        raise UserError("--of", "give two or three different objectives, such as wer,bytes")
    where, values = _where(filters)
    columns = [OBJECTIVES[name] for name in objectives]
    with _connect(store, ["results"]) as connection, _explained("results", store):
        connection.execute(f"CREATE TEMP TABLE asked AS SELECT * FROM results WHERE {where}", values)
        places = f"dense_rank() OVER (ORDER BY {', '.join(PLACE)})"
        senses = ", ".join(f"{sense} * {name} AS o{number}" for number, (name, sense) in enumerate(columns))
        numbers = connection.execute(f"SELECT {places} AS place, {senses} FROM asked ORDER BY rowid").fetchnumpy()
        points_NO = np.stack([numbers[f"o{number}"] for number in range(len(columns))], axis=1).astype(np.float64)
        first_N = np.zeros(len(points_NO), dtype=bool)
        for place in np.unique(numbers["place"]):
            members = np.flatnonzero(numbers["place"] == place)
            first_N[members[non_dominated(points_NO[members])]] = True
        connection.register("fronts", pa.table({"row": np.arange(len(first_N)), "dominated": ~first_N}))
        kept = "TRUE" if dominated else "NOT dominated"
        order = ", ".join([*PLACE, *(f"{sense} * {name}" for name, sense in columns), "run_id", "depth"])
        asked = f"SELECT asked.*, dominated FROM asked JOIN fronts ON asked.rowid = row WHERE {kept} ORDER BY {order}"
        return _rows(connection.sql(asked))


def non_dominated(points_NO: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of N points no other one is at most as large as in every objective and smaller in one."""
    first_N = np.zeros(len(points_NO), dtype=bool)
    left = np.lexsort(points_NO.T[::-1])
    while left.size:
        # Nothing that is left dominates the least of them.
        best_O = points_NO[left[0]]
        same_N = (points_NO[left] == best_O).all(axis=1)
        first_N[left[same_N]] = True
        left = left[~same_N & (points_NO[left] < best_O).any(axis=1)]
    return first_N


def run_sql(store: str, sql: str, limit: int | None = None) -> tuple[list[Row], list[str]]:
    """What one SELECT over the tables `results`, `hypotheses`, `runs` and `trials` answers: rows, and names of columns.

    It reaches no file and changes nothing. Raises UserError for whatever else is asked.
    """
    with duckdb.connect() as parser, _explained("sql", store):
        statements = parser.extract_statements(sql)
        if len(statements) != 1:
            raise UserError("sql", "give one SELECT")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            raise UserError("sql", f"{statements[0].type.name} is refused; a store is only read, with SELECT")
    named = [table for table in TABLES if re.search(rf"\b{table}\b", sql, re.IGNORECASE)]
    with _connect(store, named) as connection, _explained("sql", store):
        answer = connection.sql(sql)
        if doubled := {name for name in answer.columns if answer.columns.count(name) > 1}:
            raise UserError("sql", f"two columns are called {min(doubled)}; give one another name with AS")
        return _rows(answer, limit), answer.columns


@contextmanager
def _explained(where: str, store: str) -> Iterator[None]:
    try:
        yield
    except duckdb.PermissionException:
        raise UserError(where, "reaches for a file or an extension; only the store's tables can be read") from None
    except (duckdb.IOException, duckdb.FatalException, duckdb.InternalException) as error:
        forget_merged(store)
        raise UserError(where, f"{one_line(error)}; what was merged in the cache is deleted, ask again") from None
    except duckdb.Error as error:
        raise UserError(where, f"{one_line(error)} (tables: {', '.join(TABLES)})") from None


def _connect(store: str, tables: Sequence[str]) -> duckdb.DuckDBPyConnection:
    """A database in memory with those tables of the store, which can't reach anything else."""
    root = storage.absolute(store)
    if not storage.is_folder(root):
        raise UserError("STORE", f"{store} is not there; give the storage.root of a run")
    connection = duckdb.connect(config=LOCKED)
    for kind in tables:
        if kind in DESCRIBED:
            connection.register(kind, DESCRIBED[kind](root))
            continue
        database, others = read_merged(root, kind)
        connection.register(f"other_{kind}", others)
        if database:
            path = str(database).replace("'", "''")
            connection.execute(f"ATTACH '{path}' AS merged_{kind} (READ_ONLY)")
        connection.execute(f"CREATE VIEW {kind} AS {_newest(kind, merged=database is not None)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _newest(kind: str, *, merged: bool) -> str:
    """The newest rows of a kind. Merged ones are known to be, but where other files have rows of the same run."""
    if not merged:
        return f"SELECT * FROM other_{kind} QUALIFY {newest_sql(kind)}"
    rows, touched = f"SELECT * EXCLUDE newest FROM merged_{kind}.rows", f"(SELECT run_id FROM other_{kind})"
    return (
        f"{rows} WHERE newest AND run_id NOT IN {touched} UNION ALL "
        f"SELECT * FROM ({rows} WHERE run_id IN {touched} UNION ALL SELECT * FROM other_{kind}) "
        f"QUALIFY {newest_sql(kind)}"
    )


LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "temp_directory": "",  # or large sorts would write to the folder that the user stands in
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}


def _rows(answer: duckdb.DuckDBPyRelation, limit: int | None = None) -> list[Row]:
    rows: list[Row] = (answer.limit(limit) if limit else answer).to_arrow_table().to_pylist()
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    """A value as JSON has it: sums as numbers, times as ISO 8601, bytes in hex, and null for what is no number."""
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return value if isinstance(value, str | int | None) else _text(value)


def _text(value: Any) -> str:
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def _where(filters: Sequence[str]) -> tuple[str, list[Any]]:
    """SQL and values of filters such as `depth=6`, `depth=6,12` (one of them), `wer<0.1`, `recipe~an4` (contains)."""
    parts, values = ["TRUE"], []
    for given in filters:
        parsed = FILTER.fullmatch(given.strip())
        if not parsed:
            raise UserError(given, "is no filter; write depth=6, wer<0.1, run_id~an4 or corpus!=…")
        name, operator, text = parsed[1], parsed[2], parsed[3].strip()
        column = _column(name)
        if operator == "~":
            parts.append(f"contains(lower({column}::VARCHAR), lower(?))")
            values.append(text)
            continue
        given_values = [_value(name, each.strip()) for each in (text.split(",") if operator in ("=", "!=") else [text])]
        if operator in ("=", "!="):
            parts.append(f"{column} {'NOT ' * (operator == '!=')}IN ({', '.join('?' * len(given_values))})")
        else:
            parts.append(f"{column} {operator} ?")
        values += given_values
    return " AND ".join(parts), values


def known_column(name: str) -> str:
    """The name of a column of `results`. Raises UserError with the nearest."""
    names = SCHEMAS["results"].names
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise UserError(name, f"no column{f'; did you mean {close[0]}?' if close else ''} Columns: {', '.join(names)}")
    return name


def _column(name: str) -> str:
    """A column as SQL writes it. Raises UserError."""
    return f'"{known_column(name)}"'


def _value(name: str, text: str) -> Any:
    kind = SCHEMAS["results"].field(name).type
    try:
        if pa.types.is_boolean(kind):
            return {"true": True, "false": False}[text.lower()]
        return int(text) if pa.types.is_integer(kind) else float(text) if pa.types.is_floating(kind) else text
    except (ValueError, KeyError):
        raise UserError(name, f"'{text}' is no {kind} to compare it with") from None
