"""Files on a disk: what the verbs of `storage` do there."""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

ASIDE = re.compile(r"\..*\.[0-9a-f]{32}$")
"""Names of files that are being written; no listing shows them."""


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, but for files that are being written; nothing if it is not there."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not ASIDE.match(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def size(path: Path) -> int | None:
    """Bytes of a file; None for a folder, or a name that no file can have."""
    try:
        return path.stat().st_size if path.is_file() else None
    except ValueError:  # a NUL in it
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def files(folder: Path, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[str, int]]:
    """Files below a folder with their bytes, by relative path; links to folders are followed, but not in circles."""
    for entry in entries(folder):
        if entry.is_file():
            yield prefix + entry.name, entry.stat().st_size
        elif entry.is_dir():
            found = entry.stat()
            itself = found.st_dev, found.st_ino
            if itself not in above:
                yield from files(Path(entry.path), f"{prefix}{entry.name}/", above | {itself})


def write(target: Path, data: bytes) -> None:
    """Write a file so that no reader ever sees half of it."""
    with _written_aside(target, data) as part:
        part.replace(target)


def create(target: Path, data: bytes) -> bool:
    """Write a file unless it is there; False where it is. Of many who try at once, one succeeds."""
    with _written_aside(target, data) as part:
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
"""What file systems without hard links answer: FAT, mounted buckets, some network shares."""


def _create_without_links(target: Path, data: bytes) -> bool:
    """As `create`; but a reader may see the file empty for a moment."""
    try:
        with target.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _written_aside(target: Path, data: bytes) -> Iterator[Path]:
    """A whole file beside `target`, under a name that no listing shows; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(data)
        yield part
    finally:
        part.unlink(missing_ok=True)
