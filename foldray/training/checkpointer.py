"""Checkpoints behind the training thread's back: written by a thread of the first worker, one at a time."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from foldray.results.metrics import Record, write_metrics
from foldray.training.checkpoint import (
    Snapshot,
    checkpoint_folders,
    remove_checkpoint,
    whole_checkpoints,
    write_checkpoint,
)
from foldray.training.context import Stopped, TrainJob
from foldray.training.fencing import Attempt, check_newest

_log = logging.getLogger("foldray.training")


class Checkpointer:
    """Writes an attempt's metrics and checkpoints in order, and removes old ones.

    described: files that make a checkpoint a model folder; kept_steps: steps whose checkpoints must stay besides the
    newest; on_whole: called with the position and URI of a checkpoint as soon as it is whole.
    """

    def __init__(
        self,
        job: TrainJob,
        attempt: Attempt,
        described: dict[str, bytes],
        kept_steps: Callable[[int], set[int]],
        on_whole: Callable[[dict[str, int], str], None],
    ) -> None:
        self._job = job
        self._attempt = attempt
        self._described = described
        self._kept_steps = kept_steps
        self._on_whole = on_whole
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._remove_half()

    def save(self, position: dict[str, int], kept: Snapshot, records: list[Record], began: float) -> None:
        """Begin to write metrics and then a checkpoint; waits for the one before, so that one is pending at most.

        `began` is when the training thread began to care about it: what it lost until now goes into the last record.
        """
        if self.settle():
            return  # the training loop hears of it by `failure`, on every worker at once
        records[-1]["checkpoint_seconds"] = time.perf_counter() - began
        self._pending = self._pool.submit(self._write, position, kept, records)

    @property
    def failure(self) -> BaseException | None:
        """Why the last write ended, if it ended badly."""
        pending = self._pending
        return pending.exception() if pending and pending.done() else None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written."""
        return self._pending is None or self._pending.done()

    def settle(self) -> BaseException | None:
        """Wait until everything is written; returns `failure`."""
        if self._pending:
            wait([self._pending])
        return self.failure

    def write_records(self, records: list[Record]) -> None:
        """Write metrics. Raises Stopped where a newer attempt owns the run."""
        self._check()
        write_metrics(self._job.run, str(self._attempt), records)

    def close(self) -> None:
        """Let the thread end; what it writes is finished first."""
        self._pool.shutdown()

    def _write(self, position: dict[str, int], kept: Snapshot, records: list[Record]) -> None:
        run = self._job.run
        # Before the checkpoint: whoever goes on from it finds every step up to it in the metrics.
        self.write_records(records)
        uri = write_checkpoint(run, self._attempt, position, kept, self._described, self._check)
        # Once more: between the check before the manifest and the manifest this process may have slept.
        self._check()
        self._on_whole(position, uri)
        self._retain(position["step"])

    def _check(self) -> None:
        check_newest(self._job.run, self._attempt)

    def _retain(self, step: int) -> None:
        """Remove all but the newest checkpoints, one for each step, and those that must stay."""
        found = [each for each in whole_checkpoints(self._job.run) if each.attempt <= self._attempt]
        # After the listing: this process may have slept, and a newer attempt knows better what must stay.
        self._check()
        newest = sorted({each.step for each in found})[-self._job.spec.checkpoint.keep :]
        kept = self._kept_steps(step) | set(newest)
        latest = {each.step: each for each in found}
        for each in found:
            if each.step not in kept or latest[each.step] != each:
                try:
                    remove_checkpoint(each.uri)
                except OSError as error:  # somebody reads it over a network file system, say
                    _log.warning("the checkpoint %s could not be removed: %s", each.uri, error)

    def _remove_half(self) -> None:
        """Remove what older attempts left unfinished; they are fenced off and will not finish it."""
        whole = set(whole_checkpoints(self._job.run))
        for each in checkpoint_folders(self._job.run):
            if each not in whole and each.attempt < self._attempt:
                with suppress(OSError):  # it may still be writing; what is left goes with the next attempt
                    remove_checkpoint(each.uri)


def is_superseded(failure: BaseException | None) -> bool:
    """Whether a write ended because a newer attempt owns the run."""
    return isinstance(failure, Stopped)
