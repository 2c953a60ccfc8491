"""What a training process is told: the job, and its place among the workers."""

from dataclasses import dataclass

import torch

from foldray.spec import RunSpec

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainJob:
    """The spec, and where run, corpus and initial weights are. `attempt` names this try in the metrics."""

    spec: RunSpec
    run: str
    corpus: str
    init: str
    attempt: str


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a run."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
