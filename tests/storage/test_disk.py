"""Disks that are full, read-only or limited: one line that names the path and the fix, and nothing lost."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.errors import UserError
from foldray.results.rows import write_rows
from foldray.storage.disk import explain_disk
from tests.support.commands import call
from tests.support.corpora import ids_out, prepare_serially
from tests.support.rows import hypothesis, row

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.fixture
def limited() -> Iterator[int]:
    """The largest file in bytes that this process may write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_over_the_limit_keeps_the_old_one(tmp_path: Path, limited: int) -> None:
    file = tmp_path / "file"
    storage.write_bytes(str(file), b"old")
    with pytest.raises(UserError, match=r"storage: cannot write to .*/file \(File too large\); raise the limit"):
        storage.write_bytes(str(file), bytes(limited + 1))
    with pytest.raises(UserError, match="File too large"):
        storage.create(str(tmp_path / "other"), bytes(limited + 1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


@NEEDS_ROOT
def test_a_full_disk_is_one_line_and_preparation_resumes(small: Path, spoken: Path) -> None:
    spec = CorpusSpec(path=str(spoken), row_group_seconds=10, shard_minutes=0.1, valid_fraction=0.1)
    with pytest.raises(UserError, match=rf"storage: cannot write to {small}/.* \(No space left on device\); free some"):
        prepare_serially(spec, small)
    written = {path: path.read_bytes() for path in small.rglob("*.parquet")}
    subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
    folder, manifest = prepare_serially(spec, small)
    assert {path: path.read_bytes() for path in written} == written
    assert len(ids_out(folder, manifest)) == manifest.utterances_out == manifest.utterances_in


@NEEDS_ROOT
def test_a_command_on_a_full_or_read_only_disk_exits_with_2(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(str(small), [row()], [hypothesis("one", "one")])
    code, out, err = call(capsys, "report", str(small))
    assert (code, out) == (2, "")
    assert err == (
        f"storage: cannot write to {small}/report/index.html (No space left on device); free some space there, or "
        "choose another location\n"
    )
    assert call(capsys, "results", str(small), "sql", "SELECT count(*) FROM results", "--json")[1].count("1") == 1
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    assert call(capsys, "results", str(small), "ls")[0] == 0
    code, _, err = call(capsys, "run", "quickstart", f"storage.root={small}/store")
    assert (code, err) == (
        2,
        f"storage.root: cannot write to {small}/store (Read-only file system); mount it writable, or choose another "
        "location\n",
    )


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_a_full_disk_behind_stdout_exits_with_2(tmp_path: Path, more: list[str]) -> None:
    write_rows(str(tmp_path), [row()], [hypothesis("one", "one")])
    command = [sys.executable, "-m", "foldray", "results", str(tmp_path), "ls", *more]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("storage: cannot write to a file of this command (No space left on device); free")
    assert len(ended.stderr.splitlines()) == 1


class WrappedError(Exception):
    """An error of Ray, which keeps that of a task in `cause` or those of workers by rank."""

    def __init__(self, cause: Exception | None = None, workers: dict[int, Exception] | None = None) -> None:
        super().__init__("task failed")
        self.cause, self.worker_failures = cause, workers or {}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EDQUOT, "quota", "/d/x"), "cannot write to /d/x (Disk quota exceeded); delete files"),
        (WrappedError(OSError(errno.EACCES, "no", "/d")), "cannot use /d (Permission denied); fix its permissions"),
        (WrappedError(workers={1: OSError(errno.EROFS, "no", "/x")}), "cannot write to /x (Read-only file system); mo"),
        (RuntimeError("Error while serializing: No space left on device (os error 28)"), "cannot write to a file"),
        (OSError("[Errno 5] Error reading bytes from file"), "(Input/output error); check the disk"),
    ],
)  # fmt: skip
def test_an_error_is_explained_wherever_it_was_raised(error: Exception, told: str) -> None:
    explained = explain_disk(error)
    assert isinstance(explained, UserError)
    assert told in str(explained)


@pytest.mark.parametrize("error", [ValueError("28"), FileNotFoundError(errno.ENOENT, "no", "/x"), KeyError("x")])
def test_other_errors_are_not(error: Exception) -> None:
    assert explain_disk(error) is None
