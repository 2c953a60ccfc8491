"""The Parquet files of a store's results, on this machine: those of a folder as they are, those of a bucket copied
once, since none of them ever changes."""

import functools
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from foldray import storage

READERS = 32
"""Files of a bucket that are fetched at once."""


def local_files(store: str, kind: str, run_id: str = "") -> dict[Path, int]:
    """Files of `results` or `hypotheses` with their sizes in bytes, those of one run where one is named.

    A bucket is asked for its listing (a request for a thousand files) and for the files that are not here yet (one
    each): they stay in the user's cache, `$XDG_CACHE_HOME/foldray`.
    """
    place = storage.join(storage.absolute(store), kind)
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
    place = storage.join(storage.absolute(store), kind)
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
