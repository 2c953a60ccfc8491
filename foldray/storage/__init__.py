"""Files by URI: a plain folder or `s3://…`, through one set of verbs.

S3 endpoint, region and credentials come from the usual AWS environment, never from a spec. The verbs speak S3 through
boto3, because pyarrow's writer leaves empty "directory" objects, completes a half upload when it is closed by an
error, asks twice for every read and hides the server's reason behind HEAD; other schemes go through pyarrow.
"""

import contextlib
import errno
import functools
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foldray.errors import UserError, one_line
from foldray.storage import objects
from foldray.storage.outages import explain, retrying
from foldray.storage.uri import absolute, bare, filesystem_path, is_local, is_s3, join, place, relative

__all__ = [
    "absolute", "check_writable", "download", "exists", "explain", "file_sizes", "filesystem_path", "is_folder",
    "is_local", "is_s3", "join", "list_files", "list_folders", "list_tree", "local_folder", "open_file", "read_bytes",
    "read_json", "read_range", "relative", "remove", "remove_folder", "retrying", "upload", "write_bytes", "write_json",
]  # fmt: skip

BLOCK = 2**18


def _filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a URI that is not in S3, and the path inside it."""
    return _filesystem_at(place(uri)), filesystem_path(uri)


@functools.lru_cache(maxsize=64)
def _filesystem_at(where: str) -> Any:
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(where)[0] if where else fs.LocalFileSystem()
    except Exception as error:
        problem = f"not a readable location ({one_line(error)}); use a folder or s3://bucket/prefix"
        raise UserError(where, problem) from None


def _infos(uri: str, recursive: bool = False) -> list[Any]:
    """What pyarrow lists in a folder, nothing if it is not there."""
    from pyarrow import fs

    found, path = _filesystem(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return list(retrying(lambda: found.get_file_info(selector), uri))


def _type(uri: str) -> Any:
    found, path = _filesystem(uri)
    return retrying(lambda: found.get_file_info(path).type, uri)


def exists(uri: str) -> bool:
    """Whether a file is there. Empty 'directories' of an object store do not count."""
    from pyarrow import fs

    return objects.size(uri) is not None if is_s3(uri) else bool(_type(uri) == fs.FileType.File)


def is_folder(uri: str) -> bool:
    """Whether a folder (in an object store: a prefix with files under it) is there."""
    from pyarrow import fs

    if is_s3(uri):
        return next(objects.files(uri, MaxKeys=10), None) is not None
    return bool(_type(uri) == fs.FileType.Directory)


def list_files(uri: str) -> list[str]:
    """Names of the files directly under a folder, sorted; empty if it is not there."""
    from pyarrow import fs

    if is_s3(uri):
        return sorted(name for name, _ in objects.files(uri, Delimiter="/"))
    return sorted(info.base_name for info in _infos(uri) if info.type == fs.FileType.File)


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly under a folder, sorted; empty if it is not there."""
    from pyarrow import fs

    if not is_s3(uri):
        return sorted(info.base_name for info in _infos(uri) if info.type == fs.FileType.Directory)
    pages = objects.pages(uri, Delimiter="/")
    prefixes = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
    names = sorted({prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes})
    kept = objects.in_threads(lambda name: is_folder(join(uri, name)), names)  # a prefix may hold nothing but a marker
    return [name for name, keep in zip(names, kept, strict=True) if keep]


def file_sizes(uris: Iterable[str]) -> list[int | None]:
    """Bytes of each file, None where it is missing; requests to a bucket go out many at once."""
    from pyarrow import fs

    wanted = list(uris)
    remote = [uri for uri in wanted if is_s3(uri)]
    sizes: dict[str, int | None] = dict(zip(remote, objects.in_threads(objects.size, remote), strict=True))
    others = [uri for uri in wanted if not is_s3(uri)]
    for where in {place(uri) for uri in others}:
        members = [uri for uri in others if place(uri) == where]
        found = _filesystem(members[0])[0]
        paths = [filesystem_path(uri) for uri in members]
        infos = retrying(functools.partial(found.get_file_info, paths), members[0])
        sizes.update(
            (uri, info.size if info.type == fs.FileType.File else None)
            for uri, info in zip(members, infos, strict=True)
        )
    return [sizes[uri] for uri in wanted]


def list_tree(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by its path relative to it; empty if it is not there."""
    from pyarrow import fs

    if is_s3(uri):
        return dict(sorted(objects.files(uri)))
    path = filesystem_path(uri)
    infos = (info for info in _infos(uri, recursive=True) if info.type == fs.FileType.File)
    return dict(sorted((info.path.removeprefix(path).lstrip("/"), info.size) for info in infos))


def open_file(uri: str) -> io.BufferedReader:
    """A file opened for reading at any place, in blocks of 256 KiB. Raises FileNotFoundError."""
    if is_local(uri):
        return open(filesystem_path(uri), "rb")
    size = file_sizes([uri])[0]
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
    if is_local(uri):
        with open(filesystem_path(uri), "rb") as file:
            file.seek(offset)
            return file.read(length)
    if is_s3(uri):
        return objects.read_part(uri, offset, length)[0]
    found, path = _filesystem(uri)

    def read() -> bytes:
        with found.open_input_file(path) as file:
            return bytes(file.read_at(length, offset))

    return retrying(read, uri)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    if is_s3(uri):
        return objects.read(uri)
    found, path = _filesystem(uri)

    def read() -> bytes:
        with found.open_input_stream(path) as stream:
            return bytes(stream.read())

    return retrying(read, uri)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    if is_s3(uri):
        objects.write(uri, data)
    elif is_local(uri):
        _local_write(Path(filesystem_path(uri)), data)
    else:
        found, path = _filesystem(uri)

        def write() -> None:
            with found.open_output_stream(path) as stream:
                stream.write(data)

        retrying(write, uri)


def _local_write(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    """A JSON file's value."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    """A value as an indented JSON file, written whole."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def remove(uri: str) -> None:
    """Delete one file if it is there."""
    if is_s3(uri):
        objects.delete(uri)
        return
    found, path = _filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        retrying(lambda: found.delete_file(path), uri)


def remove_folder(uri: str) -> None:
    """Delete a folder and everything in it, if it is there."""
    if is_s3(uri):
        objects.delete_below(uri)
        return
    found, path = _filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        retrying(lambda: found.delete_dir(path), uri)


def upload(folder: Path, uri: str, last: str | None = None) -> None:
    """Copy every file under a local folder to a URI; the file `last` after all others, as a mark of the whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in sorted(files, key=lambda path: path.name == last):
        write_bytes(join(uri, file.relative_to(folder).as_posix()), file.read_bytes())


def download(uri: str, folder: Path) -> None:
    """Copy every file directly under a URI to a local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in list_files(uri):
        (folder / name).write_bytes(read_bytes(join(uri, name)))


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A local view of a folder: itself, or a temporary copy of a bucket's files."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as copied:
        download(uri, Path(copied))
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
            field, f"cannot write to {uri} ({one_line(error)}); choose another location or mend its rights"
        ) from None
