"""Files by URI: a plain folder or `s3://…`, through one function and one set of verbs.

S3 endpoint, region and credentials come from the usual AWS environment, never from a spec.
"""

import contextlib
import functools
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foldray.errors import UserError


def absolute(uri: str) -> str:
    """A URI or path as workers on any host of the run may use it: local paths become absolute."""
    if "://" in uri and not uri.startswith("file://"):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def is_local(uri: str) -> bool:
    """Whether the URI is a plain folder or file of this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """Parts appended to a URI with single slashes; options after '?' stay at the end."""
    base, mark, options = uri.partition("?") if not is_local(uri) else (uri, "", "")
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)]) + mark + options


def filesystem(uri: str) -> tuple[Any, str]:
    """A pyarrow filesystem and the path inside it. Raises UserError for a URI no filesystem serves."""
    return _filesystem(_place(uri)), filesystem_path(uri)


def filesystem_path(uri: str) -> str:
    """The path of a URI inside its filesystem: keys as they are, since names may hold any character."""
    return absolute(uri) if is_local(uri) else uri.split("://", 1)[1].partition("?")[0]


def _place(uri: str) -> str:
    """What decides which filesystem serves a URI: nothing for local files, else scheme, bucket and options."""
    if is_local(uri):
        return ""
    scheme, _, rest = uri.partition("://")
    key, mark, options = rest.partition("?")
    return f"{scheme}://{key.split('/', 1)[0]}{mark}{options}"


@functools.lru_cache(maxsize=64)
def _filesystem(place: str) -> Any:
    from pyarrow import fs

    if not place:
        return fs.LocalFileSystem()
    try:
        return fs.FileSystem.from_uri(place)[0]
    except Exception as error:
        problem = f"not a readable location ({_one_line(error)}); use a folder or s3://bucket/prefix"
        raise UserError(place, problem) from None


def exists(uri: str) -> bool:
    """Whether a file is there. Empty 'directories' of an object store do not count."""
    from pyarrow import fs

    found, path = filesystem(uri)
    return bool(found.get_file_info(path).type == fs.FileType.File)


def is_folder(uri: str) -> bool:
    """Whether a folder (or a prefix with files under it) is there."""
    from pyarrow import fs

    found, path = filesystem(uri)
    return bool(found.get_file_info(path).type == fs.FileType.Directory)


def list_files(uri: str) -> list[str]:
    """Names of the files directly under a folder, sorted; empty if it is not there."""
    from pyarrow import fs

    found, path = filesystem(uri)
    infos = found.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == fs.FileType.File)


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly under a folder, sorted; empty if it is not there."""
    from pyarrow import fs

    found, path = filesystem(uri)
    infos = found.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def file_sizes(uris: Iterable[str]) -> list[int | None]:
    """Bytes of each file, None where it is missing; one request after the other only between filesystems."""
    from pyarrow import fs

    wanted = list(uris)
    sizes: dict[str, int | None] = {}
    for place in {_place(uri) for uri in wanted}:
        members = [uri for uri in wanted if _place(uri) == place]
        infos = _filesystem(place).get_file_info([filesystem_path(uri) for uri in members])
        found = (info.size if info.type == fs.FileType.File else None for info in infos)
        sizes.update(zip(members, found, strict=True))
    return [sizes[uri] for uri in wanted]


def list_tree(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by its path relative to it; empty if it is not there."""
    from pyarrow import fs

    found, path = filesystem(uri)
    infos = found.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
    files = ((info.path.removeprefix(path).lstrip("/"), info) for info in infos if info.type == fs.FileType.File)
    return {name: info.size for name, info in sorted(files)}


def open_file(uri: str) -> Any:
    """A file opened for reading at any place, in blocks of 256 KiB. Raises FileNotFoundError."""
    found, path = filesystem(uri)
    return io.BufferedReader(found.open_input_file(path), 2**18)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset` on; fewer where it ends before."""
    found, path = filesystem(uri)
    with found.open_input_file(path) as file:
        return bytes(file.read_at(length, offset))


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    found, path = filesystem(uri)
    with found.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    found, path = filesystem(uri)
    if not is_local(uri):
        with found.open_output_stream(path) as stream:
            stream.write(data)
        return
    target = Path(path)
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
    found, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        found.delete_file(path)


def remove_folder(uri: str) -> None:
    """Delete a folder and everything in it, if it is there."""
    found, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        found.delete_dir(path)


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
    except Exception as error:
        raise UserError(
            field, f"cannot write to {uri} ({_one_line(error)}); choose another location or mend its rights"
        ) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
