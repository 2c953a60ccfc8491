"""Asynchronous checkpoint writer: a thread of rank 0 writes one checkpoint at a time while training goes on."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

from foldray.results.metrics import Record, write_metrics
from foldray.training.checkpoint import StateSnapshot, write_checkpoint
from foldray.training.cursor import Cursor
from foldray.training.fencing import Attempt, check_newest
from foldray.training.job import RunStopped, TrainJob
from foldray.training.run_folder import checkpoint_folders, remove_checkpoint, whole_checkpoints

_log = logging.getLogger("foldray.training")


class Checkpointer:
    """Writes an attempt's metrics and checkpoints in order, and removes old ones.

    Args:
        job: The job.
        attempt: The attempt that writes.
        model_files: Configuration files that make a checkpoint a model folder.
        kept_steps: Given the newest step, returns the steps whose checkpoints must stay besides the newest ones.
        on_written: Called with the cursor and URI of a checkpoint as soon as it is complete, in the writing thread.
    """

    def __init__(
        self,
        job: TrainJob,
        attempt: Attempt,
        model_files: dict[str, bytes],
        kept_steps: Callable[[int], set[int]],
        on_written: Callable[[Cursor, str], None],
    ) -> None:
        self._job = job
        self._attempt = attempt
        self._model_files = model_files
        self._kept_steps = kept_steps
        self._on_written = on_written
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._remove_incomplete()

    def save(self, cursor: Cursor, snapshot: StateSnapshot, records: list[Record], began: float) -> None:
        """Start to write metrics and then a checkpoint, after the previous one is written.

        Args:
            cursor: The step to resume with.
            snapshot: The tensors.
            records: Metrics since the previous checkpoint.
            began: When the training thread started on this checkpoint (`time.perf_counter`); the last record gets the
                seconds that training lost since.
        """
        if self.wait():
            return  # the training loop acts on `failure`, on every worker at once
        records[-1]["checkpoint_seconds"] = time.perf_counter() - began
        self._pending = self._pool.submit(self._write, cursor, snapshot, records)

    @property
    def failure(self) -> BaseException | None:
        """The exception that ended the last write, if any."""
        pending = self._pending
        return pending.exception() if pending and pending.done() else None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written."""
        return self._pending is None or self._pending.done()

    def wait(self) -> BaseException | None:
        """Wait until everything is written; return `failure`."""
        if self._pending:
            wait([self._pending])
        return self.failure

    def write_records(self, records: list[Record]) -> None:
        """Write metrics. Raises RunStopped if a newer attempt owns the run."""
        self._check()
        write_metrics(self._job.run, str(self._attempt), records)

    def close(self) -> None:
        """Finish pending writes and end the thread."""
        self._pool.shutdown()

    def _write(self, cursor: Cursor, snapshot: StateSnapshot, records: list[Record]) -> None:
        run = self._job.run
        # Before the checkpoint: an attempt that resumes from it finds every step up to it in the metrics.
        self.write_records(records)
        uri = write_checkpoint(run, self._attempt, cursor, snapshot, self._model_files, self._check)
        # Again: this process may have slept between the check and the manifest.
        self._check()
        self._on_written(cursor, uri)
        self._retain(cursor.step)

    def _check(self) -> None:
        check_newest(self._job.run, self._attempt)

    def _retain(self, step: int) -> None:
        """Remove checkpoints, except the newest ones, one for each step, and those that must stay."""
        found = [each for each in whole_checkpoints(self._job.run) if each.attempt <= self._attempt]
        # After the listing: this process may have slept, and then a newer attempt decides what stays.
        self._check()
        newest = sorted({each.step for each in found})[-self._job.spec.checkpoint.keep :]
        kept = self._kept_steps(step) | set(newest)
        latest = {each.step: each for each in found}
        for each in found:
            if each.step not in kept or latest[each.step] != each:
                try:
                    remove_checkpoint(each.uri)
                except OSError as error:  # for instance, open on a network file system
                    _log.warning("the checkpoint %s could not be removed: %s", each.uri, error)

    def _remove_incomplete(self) -> None:
        """Remove incomplete checkpoints of older attempts, which are fenced off and will not complete them."""
        whole = set(whole_checkpoints(self._job.run))
        for each in checkpoint_folders(self._job.run):
            if each not in whole and each.attempt < self._attempt:
                with suppress(OSError):  # it may still be writing; the next attempt removes the remainder
                    remove_checkpoint(each.uri)


def is_superseded(failure: BaseException | None) -> bool:
    """Return whether a write ended because a newer attempt owns the run."""
    return isinstance(failure, RunStopped)
