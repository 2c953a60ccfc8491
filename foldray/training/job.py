"""What to train and where: the job that the driver hands to every worker. Imports no torch."""

import dataclasses
import json
from typing import TypedDict

from foldray.config.spec import RunSpec
from foldray.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """One training run.

    Attributes:
        spec: The run's spec.
        run: URI of the run's folder.
        corpus: URI of the prepared corpus.
        init: The stock checkpoint to start from: a folder, a URI or a hub name. Not read if the run has a checkpoint.
        submission: Number of this start of the command; see `fencing`.
    """

    spec: RunSpec
    run: str
    corpus: str
    init: str
    submission: int = 1


def dump_job(job: TrainJob) -> str:
    """Serialise a job for another process."""
    return json.dumps({**dataclasses.asdict(job), "spec": job.spec.model_dump(mode="json")})


def load_job(dumped: str) -> TrainJob:
    """Restore a job from `dump_job`."""
    values = json.loads(dumped)
    return TrainJob(**{**values, "spec": RunSpec(**values["spec"])})


class WorkerOutcome(TypedDict, total=False):
    """What a worker returns: the last step, or the field and problem of a RunStopped."""

    step: int
    stopped: tuple[str, str]


class RunStopped(UserError):  # noqa: N818
    """Every worker stops at this step; a retry would not help."""
