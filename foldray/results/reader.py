"""The one reader of results: the tables of a store in DuckDB, and which rows are the newest.

Result files are never changed or deleted; scoring again adds rows. So every reader needs the same two rules:

- newest: of rows with the same EVALUATION key the one `created` last, and its hypotheses;
- last step: of a run's rows on one test set those of the highest step, whenever they were scored.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, cast

import duckdb

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.results.alignment import fits
from foldray.results.cache import cached_rows, delete_merged
from foldray.results.rows import EVALUATION, NEWEST, Hypothesis, Kind, ResultRow
from foldray.results.run_tables import runs_table, trials_table
from foldray.storage.layout import STORE_FOLDERS

JsonRow = dict[str, Any]
"""A row of whatever was selected, with values as JSON has them."""

TABLES = ("results", "hypotheses", "runs", "trials")
LAST_STEP = "step = max(step) OVER (PARTITION BY run_id, corpus, split, decoding)"

MEMORY_BYTES = 4 * 2**30
"""Memory of a query; half of this machine's if that is less."""

LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "temp_directory": "",  # or large sorts would write to the working directory
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
    "memory_limit": f"{min(MEMORY_BYTES, os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2)}B",
}


@contextmanager
def open_tables(
    store: str, tables: Sequence[str], run_id: str = "", where: str = "results"
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database with some of TABLES, which can reach nothing else.

    run_id: read the results and hypotheses of this run only. where: what errors of DuckDB are reported as. Raises
    UserError if the store does not exist.
    """
    root = storage.absolute(store)
    with explained(where, store), duckdb.connect(config=LOCKED) as connection:
        found = False
        if {"results", "hypotheses"} & {*tables}:
            found |= _add_results(connection, root, run_id)
        if "hypotheses" in tables:
            found |= _add_hypotheses(connection, root, run_id)
        if not found:
            _check_store(root, store)
        if "runs" in tables:
            connection.register("runs", runs_table(root))
        if "trials" in tables:
            connection.register("trials", trials_table(root))
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection


def _check_store(root: str, store: str) -> None:
    """Raise UserError for a location without a store: there may be no results yet, but something was prepared."""
    if not storage.is_folder(root):
        raise UserError("STORE", f"{store} does not exist; give the storage.root of a run")
    if not STORE_FOLDERS & {*storage.list_folders(root)}:
        raise UserError("STORE", f"{store} is a folder without a store; give the storage.root of a run")


def _add_results(connection: duckdb.DuckDBPyConnection, root: str, run_id: str) -> bool:
    """Add the view `results` of the newest rows; returns whether there are any."""
    merged, found = _register(connection, root, "results", run_id)
    rows = f"SELECT * FROM other_results QUALIFY {NEWEST}"
    if merged:
        columns, touched = "SELECT * EXCLUDE newest FROM merged_results.rows", "(SELECT run_id FROM other_results)"
        rows = (
            f"{columns} WHERE newest AND run_id NOT IN {touched} UNION ALL "
            f"SELECT * FROM ({columns} WHERE run_id IN {touched} UNION ALL SELECT * FROM other_results) "
            f"QUALIFY {NEWEST}"
        )
    connection.execute(f"CREATE VIEW results AS {rows}")
    return found


def _add_hypotheses(connection: duckdb.DuckDBPyConnection, root: str, run_id: str) -> bool:
    """Add the view `hypotheses` of those that belong to `results`; returns whether there are any."""
    merged, found = _register(connection, root, "hypotheses", run_id)
    rows = "SELECT * FROM other_hypotheses"
    if merged:
        rows = f"SELECT * FROM merged_hypotheses.rows UNION ALL {rows}"
    same = ", ".join([*EVALUATION, "created"])
    connection.execute(f"CREATE VIEW hypotheses AS SELECT * FROM ({rows}) SEMI JOIN results USING ({same})")
    return found


def _register(connection: duckdb.DuckDBPyConnection, root: str, kind: Kind, run_id: str) -> tuple[bool, bool]:
    """Add `other_<kind>` and, for many files, `merged_<kind>.rows`; returns whether it is merged and has any rows."""
    database, others = cached_rows(root, kind, run_id)
    connection.register(f"other_{kind}", others)
    if database:
        path = str(database).replace("'", "''")
        connection.execute(f"ATTACH '{path}' AS merged_{kind} (READ_ONLY)")
    return database is not None, database is not None or others.num_rows > 0


@contextmanager
def explained(where: str, store: str) -> Iterator[None]:
    """Turn errors of DuckDB into UserErrors of one line."""
    try:
        yield
    except duckdb.PermissionException:
        raise UserError(where, "reaches for a file or an extension; only the store's tables can be read") from None
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except RuntimeError as error:  # what DuckDB raises on Ctrl-C
        if "interrupted" not in str(error).lower():
            raise
        raise KeyboardInterrupt from None
    except duckdb.OutOfMemoryException:
        raise UserError(where, f"needs more than {LOCKED['memory_limit']} of memory; select or group less") from None
    except (duckdb.IOException, duckdb.FatalException, duckdb.InternalException) as error:
        delete_merged(store)
        raise UserError(where, f"{one_line(error)}; the damaged cache is deleted, run the query again") from None
    except duckdb.Error as error:
        # Without the excerpt of the query, whose caret points nowhere once it is on one line.
        problem = one_line(ValueError(re.sub(r"\n+LINE \d+:.*", "", str(error), flags=re.DOTALL)), 400)
        raise UserError(where, f"{problem} (tables: {', '.join(TABLES)})") from None


def read_rows(store: str, run_id: str = "") -> list[ResultRow]:
    """Read the newest result rows of a store or of one run, oldest first."""
    with open_tables(store, ["results"], run_id) as connection:
        return result_rows(connection.sql("SELECT * FROM results ORDER BY created, run_id, depth"))


def read_hypotheses(store: str, run_id: str) -> list[Hypothesis]:
    """Read the newest hypotheses of a run, on each test set those of the last step that was scored.

    Raises UserError for an alignment that does not belong to its texts.
    """
    with open_tables(store, ["hypotheses"], run_id) as connection:
        last = f"(SELECT * FROM results QUALIFY {LAST_STEP})"
        same = ", ".join(EVALUATION)
        found = connection.sql(f"SELECT * FROM hypotheses SEMI JOIN {last} USING ({same}) ORDER BY depth, id")
        hypotheses = cast(list[Hypothesis], json_rows(found))
    for each in hypotheses:
        if not fits(each["reference"], each["hypothesis"], each["alignment"]):
            problem = f"has a damaged hypothesis of utterance {each['id']}: its alignment is not one of its texts"
            raise UserError(run_id or store, f"{problem}; score the run again with `foldray evaluate`")
    return hypotheses


def result_rows(answer: duckdb.DuckDBPyRelation) -> list[ResultRow]:
    """Fetch the rows of a relation that has the columns of `results`."""
    return cast(list[ResultRow], json_rows(answer))


def json_rows(answer: duckdb.DuckDBPyRelation, limit: int | None = None) -> list[JsonRow]:
    """Fetch the rows of any relation with values that JSON can hold."""
    wanted = answer.limit(limit) if limit else answer
    try:
        rows = _fetch(wanted, ("INTERVAL",))
    except (OverflowError, ValueError):  # Python's dates end at the years 1 and 9999
        rows = _fetch(wanted, ("INTERVAL", "DATE", "TIME"))
    return [{name: _as_json(value) for name, value in row.items()} for row in rows]


def _fetch(answer: duckdb.DuckDBPyRelation, as_text: tuple[str, ...]) -> list[JsonRow]:
    """Fetch rows, with columns whose type contains one of `as_text` in DuckDB's own notation."""
    quoted = ['"' + name.replace('"', '""') + '"' for name in answer.columns]
    texts = [any(name in str(kind) for name in as_text) for kind in answer.types]
    if any(texts):
        columns = [f"{name}::VARCHAR AS {name}" if text else name for name, text in zip(quoted, texts, strict=True)]
        answer = answer.project(", ".join(columns))
    rows: list[JsonRow] = answer.to_arrow_table().to_pylist()
    return rows


def _as_json(value: object) -> object:
    """Decimals as numbers, times in ISO 8601, bytes in hex, and null for NaN and infinity."""
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _as_json(each) for name, each in value.items()}
    return value if isinstance(value, str | int | None) else _as_text(value)


def _as_text(value: object) -> str:
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
