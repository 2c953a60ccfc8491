"""One worker of a training run under Ray Train: what it runs, tells and starts beside it."""

import logging
import os
import time
from concurrent.futures import Future
from typing import Any

import torch

from foldray import storage
from foldray.results.metrics import Record
from foldray.storage.layout import Run
from foldray.training.context import Stopped, Surroundings, TrainJob, Worker, dump_job, load_job
from foldray.training.final_model import finish_run
from foldray.training.loop import train_model
from foldray.training.validation import validate_checkpoint

PROGRESS_SECONDS = 0.5


def train_as_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs; `fit` hears what the first one returns."""
    import ray.train
    from ray.train.torch import get_device

    job = load_job(config["job"])
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), get_device())
    if worker.device.type == "cpu":
        _tune_cpu(job.spec.scale.resources_per_worker)
    messenger = _Messenger(config["messages"], worker.rank)
    logging.getLogger("foldray").addHandler(_Notes(config["messages"]))
    around = Surroundings(messenger, lambda step, uri: _start_validation(job, step, uri), _announced_preemption)
    try:
        _check_store(job.run, worker)
        trained = train_model(job, worker, around)
        if worker.rank == 0:
            finish_run(job, trained.final_steps, trained.attempt)
        said: dict[str, Any] = {"step": trained.step}
    except Stopped as stopped:
        # Not raised: Ray Train would begin again, and end here again.
        said = {"stopped": [stopped.where, stopped.problem]}
    messenger.flush()
    return said


def _check_store(run: str, worker: Worker) -> None:
    """Raise Stopped where the store is a folder that some node does not share."""
    if missing := worker.how_many(not storage.exists(Run(run).spec)):
        raise Stopped(
            "storage.root",
            f"{missing} of {worker.world} workers do not find {run}; on several nodes the store must be a bucket, or a "
            "folder that all of them share",
        )


def _tune_cpu(resources: dict[str, float]) -> None:
    # Late in training many activations and moments fall below normal numbers, which CPUs do slowly.
    torch.set_flush_denormal(True)
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))


def _announced_preemption() -> str | None:
    """Which nodes are about to go, and when; every worker must ask."""
    import ray.train

    info = ray.train.get_preemption_info()
    return f"{','.join(info.preempted_node_ids)} at {info.deadline_ms}" if info else None


def _start_validation(job: TrainJob, step: int, uri: str) -> "Future[Record]":
    """Score a checkpoint in a Ray task of its own, beside training."""
    import ray

    asked = dict(job.spec.scale.validation_resources)
    # By default it needs nothing, so that a cluster full of training workers runs it at once, here rather than on a
    # small head. It belongs to no placement group: those of the workers have no room.
    task = ray.remote(
        num_cpus=asked.pop("CPU", 0),
        num_gpus=asked.pop("GPU", 0),
        resources=asked,
        scheduling_strategy="DEFAULT" if job.spec.scale.validation_resources else here(ray, soft=True),
        max_retries=3,
    )(_validate)
    reference = task.remote(dump_job(job), step, uri)
    scoring: Future[Record] = reference.future()
    return scoring


def _validate(dumped: str, step: int, uri: str) -> Record:
    job = load_job(dumped)
    _tune_cpu({"CPU": (os.cpu_count() or 1) // 2, **job.spec.scale.validation_resources})
    device = "cuda" if torch.cuda.is_available() and job.spec.scale.validation_resources.get("GPU") else "cpu"
    return validate_checkpoint(job.run, step, uri, job.corpus, job.spec.batch.max_duration, device)


class _Notes(logging.Handler):
    """Passes warnings on to the driver's terminal; by itself Ray leaves them in the logs of a worker's node."""

    def __init__(self, messages: Any) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.actor.put_nowait.remote([{"note": record.getMessage()}])


class _Messenger:
    """Passes the first worker's records on in handfuls, at most twice a second, and never waits for a reader."""

    def __init__(self, messages: Any, rank: int) -> None:
        self._messages = messages
        self._rank = rank
        self._held: list[Record] = []
        self._sent = 0.0

    def __call__(self, record: Record) -> None:
        self._held.append(record)
        if time.monotonic() - self._sent >= PROGRESS_SECONDS or "valid_wer" in record:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        if self._rank == 0 and self._held:
            self._messages.actor.put_nowait.remote(self._held)
        self._held, self._sent = [], time.monotonic()


def here(ray: Any, *, soft: bool = False) -> Any:
    """Ray's way to say: on this very node; `soft`: or elsewhere, where it is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)
