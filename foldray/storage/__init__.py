"""Files by URI: one set of functions for local folders and `s3://…`.

S3 endpoint, region and credentials come from the usual AWS environment, never from a spec. S3 requests go through
boto3: pyarrow's writer leaves empty "directory" objects, completes a partial upload when an error closes it, sends two
requests per read, and its HEAD requests hide why the server refuses (docs/DESIGN.md, also on obstore).

Example:
    >>> storage.write_json("s3://bucket/store/note.json", {"text": "hello"})
    >>> storage.list_files("s3://bucket/store")
    ['note.json']
"""

import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from foldray.errors import DamagedFileError, UserError, one_line, scrubbed
from foldray.storage import local, objects
from foldray.storage.disk import explain_disk
from foldray.storage.outages import retrying
from foldray.storage.remote_file import RemoteFile
from foldray.storage.uri import (
    absolute,
    bare,
    filesystem_path,
    inside,
    is_known,
    is_local,
    is_plain,
    is_relative,
    is_s3,
    join,
    local_path,
    relative,
    split,
)

__all__ = [
    "absolute", "check_writable", "create", "create_json", "download", "exists", "explain_disk", "file_sizes",
    "filesystem_path", "inside", "is_folder", "is_known", "is_local", "is_plain", "is_relative", "join", "list_files",
    "list_folders", "list_tree", "local_folder", "open_file", "parse_json", "read_bounded", "read_bytes", "read_json",
    "read_range", "relative", "remove", "remove_folder", "retrying", "scrubbed", "split", "upload", "write_bytes",
    "write_json",
]  # fmt: skip

BUFFER_BYTES = 2**18
MAX_JSON_BYTES = 2**28
"""Most bytes of a JSON file: Python's values take ten times as many."""


def exists(uri: str) -> bool:
    """Return whether a file exists; empty "directory" objects are not files, and no file has an invalid name."""
    return (objects.size(uri) if is_s3(uri) else local.size(local_path(uri))) is not None


def is_folder(uri: str) -> bool:
    """Return whether a folder exists; on S3, a prefix with at least one file below it."""
    return next(objects.files(uri, page_size=10), None) is not None if is_s3(uri) else local.is_folder(local_path(uri))


def list_files(uri: str) -> list[str]:
    """Return the sorted names of the files directly in a folder; empty if it does not exist."""
    if is_s3(uri):
        return sorted(name for name, _ in objects.files(uri, delimiter="/"))
    return sorted(entry.name for entry in local.entries(local_path(uri)) if entry.is_file())


def list_folders(uri: str) -> list[str]:
    """Return the sorted names of the folders directly in a folder; empty if it does not exist."""
    if not is_s3(uri):
        return sorted(entry.name for entry in local.entries(local_path(uri)) if entry.is_dir())
    pages = objects.pages(uri, delimiter="/")
    prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
    names = sorted({prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes})
    kept = objects.in_threads(
        lambda name: is_folder(join(uri, name)), names
    )  # without prefixes that hold only empty "directory" objects
    return [name for name, keep in zip(names, kept, strict=True) if keep]


def file_sizes(uris: Iterable[str]) -> list[int | None]:
    """Return the bytes of each file, None for a missing one; requests to S3 are sent in parallel."""
    wanted = list(uris)
    remote = [uri for uri in wanted if is_s3(uri)]
    sizes: dict[str, int | None] = dict(zip(remote, objects.in_threads(objects.size, remote), strict=True))
    return [sizes[uri] if uri in sizes else local.size(local_path(uri)) for uri in wanted]


def list_tree(uri: str) -> dict[str, int]:
    """Return the bytes of every file below a folder by relative path; empty if the folder does not exist."""
    if is_s3(uri):
        return dict(sorted(objects.files(uri)))
    return dict(sorted(local.files(local_path(uri))))


def open_file(uri: str) -> io.BufferedReader:
    """Open a file for random access, on S3 with a buffer of 256 KiB. Raises FileNotFoundError."""
    if not is_s3(uri):
        return local_path(uri).open("rb")
    size = objects.size(uri)
    if size is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), bare(uri))
    return io.BufferedReader(RemoteFile(uri, size), BUFFER_BYTES)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """Return `length` bytes of a file from `offset`, or fewer at its end. Raises FileNotFoundError."""
    if length <= 0:
        return b""
    if is_s3(uri):
        return objects.read_part(uri, offset, length)[0]
    with local_path(uri).open("rb") as file:
        file.seek(offset)
        return file.read(length)


def read_bytes(uri: str) -> bytes:
    """Return the content of a file. Raises FileNotFoundError."""
    return objects.read(uri) if is_s3(uri) else local_path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Write or replace a file atomically: readers see the old content or the new."""
    if is_s3(uri):
        objects.write(uri, data)
    else:
        local.write(local_path(uri), data)


def create(uri: str, data: bytes) -> bool:
    """Create a file; return False if it already exists. Of concurrent writers, one succeeds."""
    return objects.create(uri, data) if is_s3(uri) else local.create(local_path(uri), data)


def read_bounded(uri: str, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes. Raises FileNotFoundError, or UserError for a larger one."""
    if is_s3(uri):
        data, size = objects.read_part(uri, 0, most + 1)
    else:
        size = local.size(local_path(uri)) or 0
        data = b"" if size > most else read_bytes(uri)
    if size > most:
        raise UserError(bare(uri), f"has {size:,} bytes, over the limit of {most:,}; copy it again, or do not trust it")
    return data


def read_json(uri: str, most: int = MAX_JSON_BYTES) -> Any:
    """Return the value of a JSON file of at most `most` bytes. Raises as `read_bounded`, and DamagedFileError."""
    return parse_json(read_bounded(uri, most), uri)


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the value of JSON text. Raises DamagedFileError naming `where`, the file or line it comes from."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(where, f"is damaged (not valid JSON: {one_line(error)})") from None


def write_json(uri: str, value: object) -> None:
    """Write a value as an indented JSON file, atomically."""
    write_bytes(uri, _dump(value))


def create_json(uri: str, value: object) -> bool:
    """Write a value as an indented JSON file; return False if the file already exists."""
    return create(uri, _dump(value))


def _dump(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def remove(uri: str) -> None:
    """Delete a file if it exists."""
    if is_s3(uri):
        objects.delete(uri)
    else:
        local_path(uri).unlink(missing_ok=True)


def remove_folder(uri: str) -> None:
    """Delete a folder and everything in it, if it exists."""
    if is_s3(uri):
        objects.delete_below(uri)
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(local_path(uri))


def upload(folder: Path, uri: str, last: str | None = None) -> None:
    """Copy every file below a local folder to a URI; the file named `last` comes last, to mark the copy complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: path.name == last):
        write_bytes(join(uri, file.relative_to(folder).as_posix()), file.read_bytes())


def download(uri: str, folder: Path, without: Container[str] = ()) -> None:
    """Copy every file directly in a folder to a local folder, except those named in `without`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_files(uri):
        if name not in without:
            if not is_plain(name):  # the keys of a bucket may have any name
                raise UserError(bare(uri), f"has a file with the name {name!r}, which can't be copied; remove it")
            (folder / name).write_bytes(read_bytes(join(uri, name)))


@contextlib.contextmanager
def local_folder(uri: str, without: Container[str] = ()) -> Iterator[Path]:
    """Yield a folder as a local path: a local folder itself, or a temporary copy without the files in `without`."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as copied:
        download(uri, Path(copied), without)
        yield Path(copied)


def check_writable(uri: str, field: str) -> None:
    """Write and delete a probe file. Raises UserError naming `field` if that fails."""
    probe = join(uri, f".foldray-probe-{os.getpid()}")
    try:
        write_bytes(probe, b"probe")
        remove(probe)
    except Exception as error:
        explained = (explain_disk(error, bare(uri)) if is_local(uri) else None) or error
        if isinstance(explained, UserError):
            raise UserError(field, explained.problem) from None
        problem = f"cannot write to {bare(uri)} ({scrubbed(one_line(error))})"
        raise UserError(field, f"{problem}; fix its permissions or choose another location") from None
