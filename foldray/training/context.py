"""What a training process is told: the job, its place among the workers, and who listens."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
import torch.distributed as dist

from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.results.metrics import Record

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainJob:
    """The spec, and where run, corpus and initial weights are. `submission` numbers the tries at the run."""

    spec: RunSpec
    run: str
    corpus: str
    init: str
    submission: int = 1


def dump_job(job: TrainJob) -> str:
    """A job as text, for another process."""
    return json.dumps({**dataclasses.asdict(job), "spec": job.spec.model_dump(mode="json")})


def load_job(dumped: str) -> TrainJob:
    """The job that `dump_job` made a text of."""
    values = json.loads(dumped)
    return TrainJob(**{**values, "spec": RunSpec(**values["spec"])})


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a run."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    def from_first(self, values: Sequence[int]) -> list[int]:
        """The first worker's values, on every worker; all must call with as many."""
        shared = torch.tensor(values, device=self.device)
        if self.world > 1:
            dist.broadcast(shared, src=0)
        return [int(value) for value in shared.tolist()]

    def how_many(self, answer: bool) -> int:
        """On how many workers the answer is yes; all must call."""
        count = torch.tensor(int(answer), device=self.device)
        if self.world > 1:
            dist.all_reduce(count)
        return int(count)


class Stopped(UserError):  # noqa: N818
    """Every worker stops here, at the same step; trying again would not help."""


def nobody(record: Record) -> None:
    """Listens to no record."""


@dataclass(frozen=True)
class Surroundings:
    """What the training loop asks of whoever runs it.

    on_record: sees every step's metrics, and each validation's. validate: starts the scoring of a checkpoint (step and
    URI); without it nothing is validated. preempted: asked by all workers together; names the
    preemption that is announced, None where there is none.
    """

    on_record: Callable[[Record], None] = nobody
    validate: Callable[[int, str], Future[Record]] | None = None
    preempted: Callable[[], str | None] | None = None
