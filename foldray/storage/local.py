"""Local files: what the functions of `foldray.storage` do on a file system."""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from foldray.storage.disk import explain_disk

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{32}$")
"""Names of files that are still being written; listings leave them out."""


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder without temporary files; empty if it does not exist."""
    try:
        with os.scandir(folder) as listed:
            return [entry for entry in listed if not TEMPORARY.match(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def size(path: Path) -> int | None:
    """Return the bytes of a file; None for a missing file, a folder or an invalid name."""
    try:
        return path.stat().st_size if path.is_file() else None
    except ValueError:  # the name contains NUL
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; none has an invalid name."""
    try:
        return path.is_dir()
    except ValueError:  # the name contains NUL
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def files(
    folder: Path, prefix: str = "", parents: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, int]]:
    """Yield relative path and bytes of each file below a folder; follows links to folders, but no cycles."""
    for entry in entries(folder):
        if entry.is_file():
            yield prefix + entry.name, entry.stat().st_size
        elif entry.is_dir():
            status = entry.stat()
            identity = status.st_dev, status.st_ino
            if identity not in parents:
                yield from files(Path(entry.path), f"{prefix}{entry.name}/", parents | {identity})


def write(target: Path, data: bytes) -> None:
    """Write or replace a file atomically. Raises UserError, and leaves the old file, if the disk refuses."""
    with _explained(target), _temporary_file(target, data) as part:
        part.replace(target)


def create(target: Path, data: bytes) -> bool:
    """Create a file; return False if it already exists. Of concurrent writers, one succeeds.

    Raises UserError if the disk refuses.
    """
    with _explained(target), _temporary_file(target, data) as part:
        try:
            os.link(part, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_without_links(target, data)
    return True


NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""Errors of `os.link` on file systems without hard links: FAT, mounted buckets, some network shares."""


def _create_without_links(target: Path, data: bytes) -> bool:
    """Like `create`, but a reader may see the file empty for a moment."""
    try:
        with target.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Raise a UserError that names the file for errors of the disk, such as one that is full."""
    try:
        yield
    except OSError as error:
        raise explain_disk(error, str(target)) or error from error


@contextlib.contextmanager
def _temporary_file(target: Path, data: bytes) -> Iterator[Path]:
    """Yield a complete temporary file next to `target`, deleted afterwards; listings leave it out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Only the beginning of the name: the whole one may be as long as a name can be (255 bytes).
    part = target.with_name(f".{target.name[:50]}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        yield part
    finally:
        part.unlink(missing_ok=True)
