"""Queries over the result rows of a store: filtered and sorted lists, Pareto fronts, and SQL."""

import difflib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foldray.errors import UserError
from foldray.results.reader import LAST_STEP, TABLES, JsonRow, explained, json_rows, open_tables, result_rows
from foldray.results.rows import SCHEMAS, ResultRow

TEST_SET = ("corpus", "split", "decoding")
"""Rows are comparable if they agree in these columns."""
Objective = Literal[
    "wer", "cer", "bytes_stored", "macs_per_audio_second", "params_stored", "rtfx", "peak_rss_bytes", "train_seconds"
]
OBJECTIVES: dict[str, tuple[Objective, int]] = {
    "wer": ("wer", 1), "cer": ("cer", 1), "bytes": ("bytes_stored", 1), "macs": ("macs_per_audio_second", 1),
    "params": ("params_stored", 1), "rtfx": ("rtfx", -1), "memory": ("peak_rss_bytes", 1),
    "train_seconds": ("train_seconds", 1),
}  # fmt: skip
"""The objectives of `pareto`: a column, and 1 where less is better, -1 where more is."""
MOST_ROWS = 1_000_000
"""Rows that a query in SQL may return."""
SQL_SECONDS = 300.0
"""Seconds that a query in SQL may take."""
FILTER = re.compile(r"(\w+)(<=|>=|!=|=|<|>|~)(.*)")


class ParetoRow(ResultRow):
    """A result row, and whether another row of the same test set is better in one objective and worse in none."""

    dominated: bool


def list_rows(
    store: str,
    filters: Sequence[str] = (),
    sort: str = "-created",
    limit: int | None = None,
    *,
    last_step: bool = False,
) -> tuple[list[ResultRow], int]:
    """List the newest rows that match all filters.

    Args:
        filters: such as `depth=6`, `depth=6,12` (one of them), `wer<0.1` or `recipe~an4` (contains).
        sort: columns, separated by commas; `-` before one puts its largest values first.
        limit: return no more rows than this.
        last_step: of the matching rows of a run on one test set keep those of the last step.

    Returns:
        The rows, and how many match without the limit.

    Raises:
        UserError: naming a filter or column that is wrong.
    """
    where, values = _where(filters)
    if last_step:
        where = f"{where} QUALIFY {LAST_STEP}"
    order = ", ".join(f"{_column(name.removeprefix('-'))}{' DESC' * name.startswith('-')}" for name in sort.split(","))
    with open_tables(store, ["results"]) as connection:
        connection.execute(f"CREATE TEMP TABLE matches AS SELECT * FROM results WHERE {where}", values)
        ((total,),) = connection.execute("SELECT count(*) FROM matches").fetchall()
        # The remaining order makes the answer the same each time.
        query = f"SELECT * FROM matches ORDER BY {order}, run_id, depth, corpus, split, decoding"
        return result_rows(connection.sql(f"{query} LIMIT {limit}" if limit else query)), total


def pareto(
    store: str, objectives: Sequence[str] = ("wer", "bytes"), filters: Sequence[str] = (), *, dominated: bool = False
) -> list[ParetoRow]:
    """Find the rows on the Pareto front of their test set and decoding.

    Args:
        objectives: two or three of OBJECTIVES.
        filters: as for `list_rows`.
        dominated: return the other rows too.

    Raises:
        UserError: naming an objective, filter or column that is wrong.
    """
    for name in objectives:
        if name not in OBJECTIVES:
            raise UserError("--of", f"'{name}' must be one of {', '.join(OBJECTIVES)}")
    if not 2 <= len(set(objectives)) == len(objectives) <= 3:
        raise UserError("--of", "give two or three different objectives, such as wer,bytes")
    where, values = _where(filters)
    columns = [OBJECTIVES[name] for name in objectives]
    with open_tables(store, ["results"]) as connection:
        connection.execute(f"CREATE TEMP TABLE matches AS SELECT * FROM results WHERE {where}", values)
        on_front_N = _fronts(connection, columns)
        connection.register("fronts", pa.table({"row": np.arange(len(on_front_N)), "dominated": ~on_front_N}))
        kept = "TRUE" if dominated else "NOT dominated"
        order = ", ".join([*TEST_SET, *(f"{sign} * {name}" for name, sign in columns), "run_id", "depth"])
        query = f"SELECT matches.*, dominated FROM matches JOIN fronts ON matches.rowid = row WHERE {kept}"
        found: list[Any] = json_rows(connection.sql(f"{query} ORDER BY {order}"))
        return found


def _fronts(connection: duckdb.DuckDBPyConnection, columns: Sequence[tuple[str, int]]) -> NDArray[np.bool_]:
    """Which rows of the table `matches`, by rowid, are on the front of their own test set."""
    test_set = f"dense_rank() OVER (ORDER BY {', '.join(TEST_SET)})"
    signed = ", ".join(f"{sign} * {name} AS o{number}" for number, (name, sign) in enumerate(columns))
    numbers = connection.execute(f"SELECT {test_set} AS test_set, {signed} FROM matches ORDER BY rowid").fetchnumpy()
    points_NO = np.stack([numbers[f"o{number}"] for number in range(len(columns))], axis=1).astype(np.float64)
    on_front_N = np.zeros(len(points_NO), dtype=bool)
    for number in np.unique(numbers["test_set"]):
        members = np.flatnonzero(numbers["test_set"] == number)
        on_front_N[members[non_dominated(points_NO[members])]] = True
    return on_front_N


def non_dominated(points_NO: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of N points no other point dominates: at most as large in every objective and smaller in one."""
    on_front_N = np.zeros(len(points_NO), dtype=bool)
    left = np.lexsort(points_NO.T[::-1])
    while left.size:
        # In lexical order, no remaining point dominates the first.
        best_O = points_NO[left[0]]
        same_N = (points_NO[left] == best_O).all(axis=1)
        on_front_N[left[same_N]] = True
        left = left[~same_N & (points_NO[left] < best_O).any(axis=1)]
    return on_front_N


def run_sql(store: str, sql: str, limit: int | None = None) -> tuple[list[JsonRow], list[str]]:
    """Run one SELECT over the tables `results`, `hypotheses`, `runs` and `trials`.

    The query can neither reach a file nor change anything. Returns the rows and the names of the columns. Raises
    UserError for anything but one SELECT.
    """
    with duckdb.connect() as parser, explained("sql", store):
        statements = parser.extract_statements(sql)
        if len(statements) != 1:
            raise UserError("sql", "give one SELECT")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            raise UserError("sql", f"{statements[0].type.name} is refused; a store is read-only, use SELECT")
    named = [table for table in TABLES if re.search(rf"\b{table}\b", sql, re.IGNORECASE)]
    with open_tables(store, named, where="sql") as connection:
        answer = connection.sql(sql)
        if doubled := {name for name in answer.columns if answer.columns.count(name) > 1}:
            raise UserError("sql", f"two columns are called {min(doubled)}; rename one with AS")
        rows = _in_time(connection, lambda: json_rows(answer, min(limit or MOST_ROWS, MOST_ROWS) + 1))
        if len(rows) > MOST_ROWS:
            raise UserError("sql", f"gives more than {MOST_ROWS:,} rows; add LIMIT, or group them")
        return rows[:limit], answer.columns


def _in_time(connection: duckdb.DuckDBPyConnection, fetch: Callable[[], list[JsonRow]]) -> list[JsonRow]:
    """Fetch rows; interrupt the query at Ctrl-C and after SQL_SECONDS. Raises UserError.

    The query has a thread of its own: DuckDB looks for signals only between its tasks, and a join may be one long task.
    """
    with ThreadPoolExecutor(1) as thread:
        fetched = thread.submit(fetch)
        try:
            return fetched.result(SQL_SECONDS)
        except TimeoutError:
            raise UserError("sql", f"takes more than {SQL_SECONDS:g} s; select less, or add LIMIT") from None
        finally:
            while not fetched.done():  # again and again: an interrupt before the query begins has no effect
                connection.interrupt()
                wait([fetched], 0.1)


def _where(filters: Sequence[str]) -> tuple[str, list[object]]:
    """SQL and its values for filters, see `list_rows`."""
    parts, values = ["TRUE"], []
    for given in filters:
        parsed = FILTER.fullmatch(given.strip())
        if not parsed:
            raise UserError(given, "is not a filter; write depth=6, wer<0.1, run_id~an4 or corpus!=…")
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
    """The name of a column of `results`. Raises UserError with the most similar ones."""
    names = SCHEMAS["results"].names
    known = f"Columns: {', '.join(names)}"
    if name not in names:
        close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        raise UserError(name, f"is not a column{'; did you mean ' + ' or '.join(close) + '?' if close else ''} {known}")
    return name


def _column(name: str) -> str:
    """A column, quoted for SQL. Raises UserError."""
    return f'"{known_column(name)}"'


def _value(name: str, text: str) -> object:
    kind = SCHEMAS["results"].field(name).type
    try:
        if pa.types.is_boolean(kind):
            return {"true": True, "false": False}[text.lower()]
        return int(text) if pa.types.is_integer(kind) else float(text) if pa.types.is_floating(kind) else text
    except (ValueError, KeyError):
        raise UserError(name, f"can't be compared with '{text}', which must be a value of type {kind}") from None
