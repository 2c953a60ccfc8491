"""The user's cache of a store: local copies of a bucket's result files, and many small files merged into one database.

Opening two thousand small files takes seconds each time. Result files never change, so a merged database is valid as
long as every file in it is still in the store. Newer files are read in addition, and merged once there are many.
"""

import functools
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa

from foldray import storage
from foldray.results.rows import NEWEST, SCHEMA_VERSION, SCHEMAS, Kind, read_files
from foldray.storage.layout import Store

MANY = 64
"""Up to so many files outside the merged database are read one by one."""
READERS = 32
"""Files of a bucket that are fetched in parallel."""


def cached_rows(store: str, kind: Kind, run_id: str = "") -> tuple[Path | None, pa.Table]:
    """Find the rows of a store, or of one run.

    Returns a DuckDB database with most of the rows in its table `rows` (None where there are few files), and the other
    rows. Merged results have the column `newest`, because computing it for a million rows takes half a second.
    """
    files = local_files(store, kind, run_id)
    if len(files) <= MANY or run_id:
        return None, read_files(kind, list(files))
    database = cache_folder(store, kind) / f"rows-{SCHEMA_VERSION}.duckdb"
    merged = _files_in(database)
    by_name = {path.name: path for path in files}
    if not all(name in by_name and files[by_name[name]] == size for name, size in merged.items()):
        merged = {}  # some were deleted
    others = [path for path in files if path.name not in merged]
    if len(others) <= MANY:
        return database, read_files(kind, others)
    try:
        _merge(database, kind, files)
    except (duckdb.Error, OSError):  # disk full
        return None, read_files(kind, list(files))
    return database, read_files(kind, [])


def delete_merged(store: str) -> None:
    """Delete the merged databases of a store; they are created again from the files."""
    for kind in SCHEMAS:
        for database in cache_folder(store, kind).glob("rows-*.duckdb"):
            database.unlink(missing_ok=True)


def _files_in(database: Path) -> dict[str, int]:
    """Names and sizes of the merged files; empty if there is no database or another version of DuckDB wrote it."""
    if not database.exists():
        return {}
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            return dict(connection.execute("SELECT name, size FROM files").fetchall())
    except duckdb.Error:
        return {}


def _merge(database: Path, kind: Kind, files: dict[Path, int]) -> None:
    """Write all files into a new database and move it into place: processes that read the old one keep it."""
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        new = Path(folder, database.name)
        with duckdb.connect(str(new)) as connection:
            connection.register("every", read_files(kind, list(files)))
            columns = f"*, {NEWEST} AS newest" if kind == "results" else "*"
            connection.execute(f"CREATE TABLE rows AS SELECT {columns} FROM every ORDER BY created, run_id")
            names = pa.table({"name": [path.name for path in files], "size": list(files.values())})
            connection.register("names", names)
            connection.execute("CREATE TABLE files AS SELECT * FROM names")
        os.replace(new, database)


def local_files(store: str, kind: Kind, run_id: str = "") -> dict[Path, int]:
    """Local paths and sizes in bytes of a store's files, or of those of one run.

    A bucket is asked for its listing (one request for a thousand files) and for files that are not in the cache yet
    (one request each). They stay in the user's cache, `$XDG_CACHE_HOME/foldray`.
    """
    folder = Store(store).tables(kind)
    sizes = storage.list_tree(folder)
    names = [name for name in sizes if name.endswith(".parquet") and "/" not in name and _is_of(name, run_id)]
    if storage.is_local(folder):
        return {Path(folder, name): sizes[name] for name in names}
    cache = cache_folder(store, kind)
    missing = [name for name in names if _size(cache / name) != sizes[name]]
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(lambda name: storage.read_bytes(storage.join(folder, name)), missing)
        for name, content in zip(missing, contents, strict=True):
            storage.write_bytes(str(cache / name), content)
    return {cache / name: sizes[name] for name in names}


def _is_of(name: str, run_id: str) -> bool:
    """Whether a file belongs to that run: `<run_id>-<12 hex digits>.parquet`."""
    return not run_id or name.rpartition("-")[0] == run_id


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def cache_folder(store: str, kind: Kind) -> Path:
    """The folder that keeps what was read of a store; a temporary one if the user's cache is not writable."""
    folder = Store(store).tables(kind)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    name = hashlib.sha256(f"{endpoint} {folder}".encode()).hexdigest()[:16]
    try:
        ours = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foldray"
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.mkdir(mode=0o700, exist_ok=True)  # transcripts of a private bucket must stay private
        cache = ours / name
        cache.mkdir(exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return Path(_process_folder().name)
    return cache if os.access(cache, os.W_OK) else Path(_process_folder().name)


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
