"""Many small result files as one database in the user's cache: opening two thousand of them takes seconds each time.

None of them ever changes, so a merged file stays true for as long as all that went into it is still in the store. What
was written since is read beside it, and merged too once there is much of it.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.results.alignment import align_words
from foldray.results.rows import _SINCE_VERSION_2, EVALUATION, SCHEMA_VERSION, SCHEMAS
from foldray.storage.layout import Store

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


READERS = 32
"""Files of a bucket that are fetched at once."""


def local_files(store: str, kind: str, run_id: str = "") -> dict[Path, int]:
    """Files of `results` or `hypotheses` with their sizes in bytes, those of one run where one is named.

    A bucket is asked for its listing (a request for a thousand files) and for the files that are not here yet (one
    each): they stay in the user's cache, `$XDG_CACHE_HOME/foldray`.
    """
    place = Store(store).tables(kind)
    sizes = storage.list_tree(place)
    names = [name for name in sizes if name.endswith(".parquet") and "/" not in name and _is_of(name, run_id)]
    if storage.is_local(place):
        return {Path(place, name): sizes[name] for name in names}
    folder = cache_folder(store, kind)
    missing = [name for name in names if _size(folder / name) != sizes[name]]
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(lambda name: storage.read_bytes(storage.join(place, name)), missing)
        for name, content in zip(missing, contents, strict=True):
            storage.write_bytes(str(folder / name), content)
    return {folder / name: sizes[name] for name in names}


def _is_of(name: str, run_id: str) -> bool:
    """Whether a file is of that run: `<run_id>-<12 hex digits>.parquet`."""
    return not run_id or name.rpartition("-")[0] == run_id


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def cache_folder(store: str, kind: str) -> Path:
    """Where what was read of a store is kept; for this process alone where the user's cache can't be written."""
    place = Store(store).tables(kind)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    name = hashlib.sha256(f"{endpoint} {place}".encode()).hexdigest()[:16]
    try:
        ours = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foldray"
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.mkdir(mode=0o700, exist_ok=True)  # transcripts of a private bucket are nobody else's to read
        folder = ours / name
        folder.mkdir(exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return Path(_own_folder().name)
    return folder if os.access(folder, os.W_OK) else Path(_own_folder().name)


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
