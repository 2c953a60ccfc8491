"""Attempts at a run: the newest attempt owns the run and fences off older ones that are still alive.

Each attempt is a small file under `<run>/attempts/`, created by a conditional write: of several processes that try the
same name, one succeeds. Submissions (starts of the command) are numbered, and so is each group of workers that Ray
Train starts for a submission. Every attempt checks that it is the newest before it writes, and stops if it is not.
"""

import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from foldray import storage
from foldray.storage.layout import Run, parse_attempt
from foldray.storage.records import read_as
from foldray.training.job import RunStopped


@dataclass(frozen=True, order=True)
class Attempt:
    """Group of workers number `group` of submission number `submission`; group 0 has no workers yet."""

    submission: int
    group: int = 0

    @classmethod
    def parse(cls, name: str) -> "Attempt":
        """Parse an attempt such as 0002-0001."""
        submission, _, group = name.partition("-")
        return cls(int(submission), int(group))

    def __str__(self) -> str:
        return f"{self.submission:04d}-{self.group:04d}"


def claim_submission(run: str) -> Attempt:
    """Create and return the newest submission of a run."""
    while True:
        newest = newest_attempt(run)
        attempt = Attempt(newest.submission + 1 if newest else 1)
        if _create(run, attempt):
            return attempt


def claim_group(run: str, submission: int) -> Attempt:
    """Create and return the newest group of a submission. Raises RunStopped if a newer submission owns the run."""
    while True:
        newest = newest_attempt(run) or Attempt(submission)
        if newest.submission > submission:
            raise _superseded(run, newest)
        attempt = Attempt(submission, newest.group + 1 if newest.submission == submission else 1)
        if _create(run, attempt):
            return attempt


def check_newest(run: str, attempt: Attempt) -> None:
    """Raise RunStopped if a newer attempt owns the run."""
    newest = newest_attempt(run)
    if newest and newest > attempt:
        raise _superseded(run, newest)


def newest_attempt(run: str) -> Attempt | None:
    """Return the attempt that owns a run; None for a run without attempts."""
    names = map(parse_attempt, storage.list_files(Run(run).attempts))
    return max((Attempt.parse(name) for name in names if name), default=None)


def _create(run: str, attempt: Attempt) -> bool:
    # A unique number: if the answer to the write is lost, it tells our file from another process's.
    facts = {
        "host": socket.gethostname(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "number": uuid.uuid4().hex,
    }
    return storage.create_json(Run(run).attempt(attempt), facts)


def _superseded(run: str, newest: Attempt) -> RunStopped:
    facts = read_as(dict[str, str], Run(run).attempt(newest))
    return RunStopped(
        run,
        f"was taken over by a newer attempt ({newest}, begun {facts.get('began')} on {facts.get('host')}); this one "
        "stops. Run the command again to take it back",
    )
