"""Attempts at a run: who may write to it. A newer attempt fences off an older one that still lives.

Each attempt is a small file under `<run>/attempts/`, made by a conditional write, so that of many who try at once one
has the name. A submission (somebody ran the command) is numbered; so is each group of workers that Ray Train starts
for it. The newest name owns the run; the others find out before they would write, and stop.
"""

import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from foldray import storage
from foldray.storage.layout import Run, parse_attempt
from foldray.training.context import Stopped


@dataclass(frozen=True, order=True)
class Attempt:
    """The `group`-th group of workers of the `submission`-th try at a run; group 0 has no workers yet."""

    submission: int
    group: int = 0

    def __str__(self) -> str:
        return f"{self.submission:04d}-{self.group:04d}"


def claim_submission(run: str) -> Attempt:
    """Become the newest submission of a run."""
    while True:
        newest = newest_attempt(run)
        attempt = Attempt(newest.submission + 1 if newest else 1)
        if _create(run, attempt):
            return attempt


def claim_group(run: str, submission: int) -> Attempt:
    """Become the newest group of workers of a submission. Raises Stopped where a newer submission owns the run."""
    while True:
        newest = newest_attempt(run) or Attempt(submission)
        if newest.submission > submission:
            raise _superseded(run, newest)
        attempt = Attempt(submission, newest.group + 1 if newest.submission == submission else 1)
        if _create(run, attempt):
            return attempt


def check_newest(run: str, attempt: Attempt) -> None:
    """Raise Stopped where a newer attempt owns the run."""
    newest = newest_attempt(run)
    if newest and newest > attempt:
        raise _superseded(run, newest)


def newest_attempt(run: str) -> Attempt | None:
    """The attempt that owns a run; None where nobody tried yet."""
    names = map(parse_attempt, storage.list_files(Run(run).attempts))
    return max((parse(name) for name in names if name), default=None)


def parse(name: str) -> Attempt:
    """The attempt of a name such as 0002-0001."""
    submission, _, group = name.partition("-")
    return Attempt(int(submission), int(group))


def _create(run: str, attempt: Attempt) -> bool:
    # The number makes the file this process's own: a lost answer to the write is told from somebody else's file.
    facts = {
        "host": socket.gethostname(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "number": uuid.uuid4().hex,
    }
    return storage.create_json(Run(run).attempt(attempt), facts)


def _superseded(run: str, newest: Attempt) -> Stopped:
    facts = storage.read_json(Run(run).attempt(newest))
    return Stopped(
        run,
        f"was taken over by a newer attempt ({newest}, begun {facts['began']} on {facts['host']}); this one stops. "
        "Run the command again to take it back",
    )
