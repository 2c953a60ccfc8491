"""Errors of local disks: one line that names the path and the fix."""

import errno
import os
import re
from collections.abc import Iterator

from foldray.errors import UserError

ELSEWHERE = "or choose another location"

FIXES = {
    errno.ENOSPC: f"free some space there, {ELSEWHERE}",
    errno.EDQUOT: f"delete files or ask for a larger quota, {ELSEWHERE}",
    errno.EROFS: f"mount it writable, {ELSEWHERE}",
    errno.EACCES: f"fix its permissions, {ELSEWHERE}",
    errno.EPERM: f"fix its permissions, {ELSEWHERE}",
    errno.EFBIG: f"raise the limit of file sizes (`ulimit -f`), {ELSEWHERE}",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "close other programs: this machine has too many open files",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.ENOTDIR: "a file is where a folder should be; move it away",
    errno.EISDIR: "a folder is where a file should be; move it away",
    errno.ELOOP: "its links form a cycle; remove one of them",
    errno.EIO: f"check the disk, {ELSEWHERE}",
    errno.ESTALE: "mount the network share again",
    errno.ENODEV: "mount the disk again",
}
"""What to do, by the number of an error of the operating system."""


def explain_disk(error: BaseException, path: str = "") -> UserError | None:
    """Describe an error of a disk in one line; None for other errors.

    Args:
        error: Any exception; its causes are searched too, such as the one that a Ray task raised.
        path: What was written, if the error does not name it.
    """
    for cause in _causes(error):
        number = _number(cause)
        if number in FIXES:
            named = path or str(getattr(cause, "filename", "") or "")
            action = "write to" if path or number in _OF_WRITES else "use"
            what = f"cannot {action} {named or 'a file of this command'}"
            return UserError("storage", f"{what} ({os.strerror(number)}); {FIXES[number]}")
    return None


_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from; Ray keeps the one of a task in `cause`."""
    seen: list[BaseException] = []
    waiting: list[BaseException] = [error]
    while waiting:
        each = waiting.pop(0)
        if each not in seen:
            seen.append(each)
            yield each
            behind = (getattr(each, "cause", None), each.__cause__, *getattr(each, "worker_failures", {}).values())
            waiting += [one for one in behind if isinstance(one, BaseException)]


def _number(error: BaseException) -> int:
    """The error number, which Rust and C++ libraries give in the message only; 0 if there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]|errno: (\d+)", str(error))
    return int(next(filter(None, found.groups()))) if found else 0
