"""Files by URI: a plain folder or `s3://…`, through one set of verbs.

S3 endpoint, region and credentials come from the usual AWS environment, never from a spec. The verbs speak S3 through
boto3, because pyarrow's writer leaves empty "directory" objects, completes a half upload when it is closed by an
error, asks twice for every read and hides the server's reason behind HEAD.
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

from foldray.errors import DamagedFileError, UserError, one_line
from foldray.storage import local, objects
from foldray.storage.outages import retrying, scrubbed
from foldray.storage.uri import (
    absolute,
    bare,
    filesystem_path,
    is_known,
    is_local,
    is_s3,
    join,
    local_path,
    relative,
    split,
)

__all__ = [
    "absolute", "check_writable", "create", "create_json", "download", "exists", "file_sizes", "filesystem_path",
    "is_folder", "is_known", "is_local", "join", "list_files", "list_folders", "list_tree", "local_folder", "open_file",
    "parse_json", "read_bytes", "read_json", "read_range", "relative", "remove", "remove_folder", "retrying",
    "scrubbed", "split", "upload", "write_bytes", "write_json",
]  # fmt: skip

BLOCK = 2**18


def exists(uri: str) -> bool:
    """Whether a file is there. Empty 'directories' of an object store do not count."""
    return objects.size(uri) is not None if is_s3(uri) else local_path(uri).is_file()


def is_folder(uri: str) -> bool:
    """Whether a folder (in an object store: a prefix with files under it) is there."""
    return next(objects.files(uri, MaxKeys=10), None) is not None if is_s3(uri) else local_path(uri).is_dir()


def list_files(uri: str) -> list[str]:
    """Names of the files directly under a folder, sorted; empty if it is not there."""
    if is_s3(uri):
        return sorted(name for name, _ in objects.files(uri, Delimiter="/"))
    return sorted(entry.name for entry in local.entries(local_path(uri)) if entry.is_file())


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly under a folder, sorted; empty if it is not there."""
    if not is_s3(uri):
        return sorted(entry.name for entry in local.entries(local_path(uri)) if entry.is_dir())
    pages = objects.pages(uri, Delimiter="/")
    prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
    names = sorted({prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes})
    kept = objects.in_threads(lambda name: is_folder(join(uri, name)), names)  # a prefix may hold nothing but a marker
    return [name for name, keep in zip(names, kept, strict=True) if keep]


def file_sizes(uris: Iterable[str]) -> list[int | None]:
    """Bytes of each file, None where it is missing; requests to a bucket go out many at once."""
    wanted = list(uris)
    remote = [uri for uri in wanted if is_s3(uri)]
    sizes: dict[str, int | None] = dict(zip(remote, objects.in_threads(objects.size, remote), strict=True))
    return [sizes[uri] if uri in sizes else local.size(local_path(uri)) for uri in wanted]


def list_tree(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by its path relative to it; empty if it is not there."""
    if is_s3(uri):
        return dict(sorted(objects.files(uri)))
    return dict(sorted(local.files(local_path(uri))))


def open_file(uri: str) -> io.BufferedReader:
    """A file opened for reading at any place, in blocks of 256 KiB. Raises FileNotFoundError."""
    if not is_s3(uri):
        return local_path(uri).open("rb")
    size = objects.size(uri)
    if size is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), bare(uri))
    return io.BufferedReader(_RemoteFile(uri, size), BLOCK)


class _RemoteFile(io.RawIOBase):
    """A file of a store by range reads, each with retries: it outlives an outage."""

    def __init__(self, uri: str, size: int) -> None:
        self._uri = uri
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = read_range(self._uri, self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on; fewer where it ends before."""
    if length <= 0:
        return b""
    if is_s3(uri):
        return objects.read_part(uri, offset, length)[0]
    with local_path(uri).open("rb") as file:
        file.seek(offset)
        return file.read(length)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    return objects.read(uri) if is_s3(uri) else local_path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    if is_s3(uri):
        objects.write(uri, data)
    else:
        local.write(local_path(uri), data)


def create(uri: str, data: bytes) -> bool:
    """Write a file unless it is there; False where it is. Of many who try at once, one succeeds."""
    return objects.create(uri, data) if is_s3(uri) else local.create(local_path(uri), data)


def read_json(uri: str) -> Any:
    """The value of a JSON file. Raises FileNotFoundError, or DamagedFileError naming the file."""
    return parse_json(read_bytes(uri), uri)


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of JSON text. Raises DamagedFileError naming `where`, the file or line it is from."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(where, f"is damaged (not valid JSON: {one_line(error)})") from None


def write_json(uri: str, value: Any) -> None:
    """Write a value as an indented JSON file; no reader sees half of it."""
    write_bytes(uri, _dump(value))


def create_json(uri: str, value: Any) -> bool:
    """Write a value as an indented JSON file unless the file exists; returns whether it was written."""
    return create(uri, _dump(value))


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def remove(uri: str) -> None:
    """Delete one file if it is there."""
    if is_s3(uri):
        objects.delete(uri)
    else:
        local_path(uri).unlink(missing_ok=True)


def remove_folder(uri: str) -> None:
    """Delete a folder and everything in it, if it is there."""
    if is_s3(uri):
        objects.delete_below(uri)
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(local_path(uri))


def upload(folder: Path, uri: str, last: str | None = None) -> None:
    """Copy every file under a local folder to a URI; the file `last` after all others, as a mark of the whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: path.name == last):
        write_bytes(join(uri, file.relative_to(folder).as_posix()), file.read_bytes())


def download(uri: str, folder: Path, without: Container[str] = ()) -> None:
    """Copy every file directly under a URI to a local folder, except those named in `without`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_files(uri):
        if name not in without:
            (folder / name).write_bytes(read_bytes(join(uri, name)))


@contextlib.contextmanager
def local_folder(uri: str, without: Container[str] = ()) -> Iterator[Path]:
    """A local view of a folder: itself, or a temporary copy of a bucket's files, except those named in `without`."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as copied:
        download(uri, Path(copied), without)
        yield Path(copied)


def check_writable(uri: str, field: str) -> None:
    """Write and delete a probe. Raises UserError naming `field` when the location refuses."""
    probe = join(uri, f".foldray-probe-{os.getpid()}")
    try:
        write_bytes(probe, b"probe")
        remove(probe)
    except UserError as error:
        raise UserError(field, error.problem) from None
    except Exception as error:
        raise UserError(
            field,
            f"cannot write to {bare(uri)} ({scrubbed(one_line(error))}); choose another location or mend its rights",
        ) from None
