"""What one worker alone knows and all must act on at the same step; it travels with the losses of every step."""

import time
from collections.abc import Sequence

from foldray.errors import UserError
from foldray.training.checkpointer import Checkpointer, is_superseded
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.job import RunStopped

ASK_SECONDS = 5.0
"""How often the workers ask together for an announced preemption; each time is a round trip to an actor."""

FAILED, SUPERSEDED, ASK = range(3)
"""Rank 0 could not write; because a newer attempt owns the run; it is time to ask for a preemption."""


class WorkerSignals:
    """Signals of a worker, and what all workers do when they receive them.

    Args:
        run: URI of the run.
        worker: This process.
        hooks: Its `preemption` tells announced preemptions.
        checkpointer: Rank 0's checkpoint writer; None elsewhere.
    """

    def __init__(self, run: str, worker: WorkerContext, hooks: LoopHooks, checkpointer: Checkpointer | None) -> None:
        self._run, self._worker, self._preemption, self._checkpointer = run, worker, hooks.preemption, checkpointer
        self._announced: set[str] = set()
        self._asked = time.monotonic()

    def read(self) -> list[float]:
        """Return this worker's signals for the next step."""
        failure = self._checkpointer.failure if self._checkpointer else None
        asks = bool(self._preemption) and self._worker.rank == 0 and time.monotonic() - self._asked > ASK_SECONDS
        return [float(failure is not None), float(is_superseded(failure)), float(asks)]

    def raise_failure(self, signals: Sequence[float]) -> None:
        """Raise on every worker if rank 0 could not write: RunStopped if a newer attempt owns the run."""
        if not signals[FAILED]:
            return
        failure = self._checkpointer.failure if self._checkpointer else None
        if signals[SUPERSEDED]:
            raise RunStopped(self._run, failure.problem if isinstance(failure, UserError) else "was taken over")
        raise failure or RuntimeError("the first worker could not write a checkpoint")

    def raise_last_failure(self) -> None:
        """Wait for the last write, then raise as `raise_failure` does. Collective."""
        if self._checkpointer:
            self._checkpointer.wait()
        self.raise_failure([float(value) for value in self._worker.broadcast([int(value) for value in self.read()])])

    def is_preempted(self, signals: Sequence[float]) -> bool:
        """Return whether a preemption is announced that no checkpoint was written for yet. Collective."""
        if not signals[ASK] or self._preemption is None:
            return False
        self._asked = time.monotonic()
        announced = self._preemption()
        if announced is None or announced in self._announced:
            return False
        self._announced.add(announced)
        return True
