"""Many small result files as one database in the user's cache: opening two thousand of them takes seconds each time.

None of them ever changes, so a merged file stays true for as long as all that went into it is still in the store. What
was written since is read beside it, and merged too once there is much of it.
"""

import os
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa

from foldray.results.files import cache_folder, local_files
from foldray.results.rows import EVALUATION, SCHEMA_VERSION, SCHEMAS, read_files

MANY = 64
"""Files beside the merged ones that are still read one by one."""


def read_merged(store: str, kind: str) -> tuple[Path | None, pa.Table]:
    """The database that holds most rows of a store's `results` or `hypotheses`, if they are many, and the other rows.

    The database has the tables `rows`, which has a column `newest` more than the files, and `files`.
    """
    files = local_files(store, kind)
    if len(files) <= MANY:
        return None, read_files(kind, list(files))
    database = cache_folder(store, kind) / f"merged-{SCHEMA_VERSION}.duckdb"
    known = _files_in(database)
    by_name = {path.name: path for path in files}
    if not all(name in by_name and files[by_name[name]] == size for name, size in known.items()):
        known = {}  # some were deleted
    others = [path for path in files if path.name not in known]
    if len(others) <= MANY:
        return database, read_files(kind, others)
    try:
        _write(database, kind, files)
    except (duckdb.Error, OSError):  # no room for it
        return None, read_files(kind, list(files))
    return database, read_files(kind, [])


def forget_merged(store: str) -> None:
    """Delete what was merged of a store: it is made again of the files."""
    for kind in SCHEMAS:
        for database in cache_folder(store, kind).glob("merged-*.duckdb"):
            database.unlink(missing_ok=True)


def _files_in(database: Path) -> dict[str, int]:
    """Names and sizes of what went into a database; none where it is not there or another DuckDB wrote it."""
    if not database.exists():
        return {}
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            return dict(connection.execute("SELECT name, size FROM files").fetchall())
    except duckdb.Error:
        return {}


def _write(database: Path, kind: str, files: dict[Path, int]) -> None:
    """Put all files into a new database, in place of the one that is there: whoever reads that keeps it."""
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        new = Path(folder, database.name)
        with duckdb.connect(str(new)) as connection:
            connection.register("every", read_files(kind, list(files)))
            newest = newest_sql(kind)
            connection.execute(f"CREATE TABLE rows AS SELECT *, {newest} AS newest FROM every ORDER BY created, run_id")
            names = pa.table({"name": [path.name for path in files], "size": list(files.values())})
            connection.register("names", names)
            connection.execute("CREATE TABLE files AS SELECT * FROM names")
        os.replace(new, database)


def newest_sql(kind: str) -> str:
    """Whether a row is the last of its evaluation: scoring again replaces, the files stay."""
    utterance = ["id"] * (kind == "hypotheses")
    key = ", ".join([name for name in (*EVALUATION, *utterance) if name in SCHEMAS[kind].names])
    return f"row_number() OVER (PARTITION BY {key} ORDER BY created DESC) = 1"
