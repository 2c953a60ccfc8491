"""What the training loop receives from the process that runs it: its place among the workers, and callbacks."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
import torch.distributed as dist

from foldray.results.metrics import Record

CPU = torch.device("cpu")


@dataclass(frozen=True)
class WorkerContext:
    """This process's rank and device among the workers of a run."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    def broadcast(self, values: Sequence[int]) -> list[int]:
        """Return rank 0's values on every worker. Collective: all must call it with equally many values."""
        shared = torch.tensor(values, device=self.device)
        if self.world > 1:
            dist.broadcast(shared, src=0)
        return [int(value) for value in shared.tolist()]

    def count(self, condition: bool) -> int:
        """Return on how many workers `condition` holds. Collective."""
        total = torch.tensor(int(condition), device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return int(total)


def ignore_record(record: Record) -> None:
    """Do nothing with a record."""


@dataclass(frozen=True)
class LoopHooks:
    """Callbacks of the training loop.

    Attributes:
        on_record: Receives the metrics of every step and every validation.
        validate: Starts the scoring of a checkpoint (step, URI). None: no validation.
        preemption: Returns a description of an announced preemption, or None. Called by all workers together.
    """

    on_record: Callable[[Record], None] = ignore_record
    validate: Callable[[int, str], Future[Record]] | None = None
    preemption: Callable[[], str | None] | None = None
