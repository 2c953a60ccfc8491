"""One worker of a training run under Ray Train: joins the others, trains, sends metrics, starts validations."""

import logging
import os
import socket
import time
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from foldray import storage
from foldray.results.metrics import Record
from foldray.storage.layout import Run
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.final_model import finish_run
from foldray.training.job import RunStopped, TrainJob, WorkerOutcome, dump_job, load_job
from foldray.training.loop import train_model
from foldray.training.placement import here
from foldray.training.validation import validate_checkpoint

if TYPE_CHECKING:
    from ray.util.queue import Queue

PROGRESS_SECONDS = 0.5

COLLECTIVE_SECONDS = 6 * 3600
"""Timeout of a collective between workers. torch's half an hour is too short: one worker may wait longer for a store
that is away (FOLDRAY_STORAGE_RETRY_SECONDS). Ray itself notices workers that died."""


def train_worker(job: TrainJob, messages: "Queue") -> WorkerOutcome:
    """Train on one Ray Train worker.

    Args:
        job: The job.
        messages: The queue to the driver.
    """
    worker = join_workers()
    if worker.device.type == "cpu":
        _tune_cpu(job.spec.scale.resources_per_worker)
    sender = _RecordSender(messages, worker.rank)
    logging.getLogger("foldray").addHandler(_WarningForwarder(messages))
    hooks = LoopHooks(sender, lambda step, uri: _start_validation(job, step, uri), _announced_preemption)
    try:
        _check_store(job.run, worker)
        trained = train_model(job, worker, hooks)
        if worker.rank == 0:
            finish_run(job, trained.final_steps, trained.attempt)
        outcome: WorkerOutcome = {"step": trained.step}
    except RunStopped as stopped:
        # Returned, not raised: Ray Train would restart the workers, and they would stop here again.
        outcome = {"stopped": (stopped.where, stopped.problem)}
    sender.flush()
    if dist.is_initialized():
        dist.destroy_process_group()
    return outcome


def join_workers() -> WorkerContext:
    """Set up torch.distributed among the workers that Ray Train started, as its torch backend does."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    context = ray.train.get_context()
    worker = WorkerContext(context.get_world_rank(), context.get_world_size(), get_device())
    if worker.device.type == "cuda":
        torch.cuda.set_device(worker.device)
    if worker.world == 1:
        return worker
    address = broadcast_from_rank_zero(_free_address() if worker.rank == 0 else None)
    os.environ |= {
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "RANK": str(worker.rank),
        "WORLD_SIZE": str(worker.world),
        "MASTER_ADDR": address[0],
        "MASTER_PORT": str(address[1]),
    }
    backend = "nccl" if worker.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
    return worker


def _free_address() -> tuple[str, int]:
    """Return this node's address and a free port."""
    from ray.util import get_node_ip_address

    address: str = get_node_ip_address()  # type: ignore[no-untyped-call]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(("", 0))
        return address, int(listener.getsockname()[1])


def _check_store(run: str, worker: WorkerContext) -> None:
    """Raise RunStopped if the store is a folder that some node does not share. Collective."""
    if missing := worker.count(not storage.exists(Run(run).spec)):
        raise RunStopped(
            "storage.root",
            f"{missing} of {worker.world} workers do not find {run}; on several nodes the store must be a bucket, or a "
            "folder that all of them share",
        )


def _tune_cpu(resources: dict[str, float]) -> None:
    # Late in training many activations and moments are denormal numbers, which are slow on CPUs.
    torch.set_flush_denormal(True)
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))


def _announced_preemption() -> str | None:
    """Return the nodes that are about to be drained, and when. Collective."""
    import ray.train

    info = ray.train.get_preemption_info()
    return f"{','.join(info.preempted_node_ids)} at {info.deadline_ms}" if info else None


def _start_validation(job: TrainJob, step: int, uri: str) -> "Future[Record]":
    """Start to score a checkpoint in a Ray task."""
    import ray

    resources = dict(job.spec.scale.validation_resources)
    # By default it needs no resources: a cluster full of training workers still runs it at once, and on this node, not
    # on a small head node. It is outside the workers' placement group, which has no room.
    where: Any = "DEFAULT" if job.spec.scale.validation_resources else here(soft=True)
    task = ray.remote(
        num_cpus=resources.pop("CPU", 0),
        num_gpus=resources.pop("GPU", 0),
        resources=resources,
        scheduling_strategy=where,
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


class _WarningForwarder(logging.Handler):
    """Sends warnings to the driver's terminal; Ray leaves them in log files of the worker's node."""

    def __init__(self, messages: "Queue") -> None:
        super().__init__(logging.WARNING)
        self._queue: Any = messages.actor

    def emit(self, record: logging.LogRecord) -> None:
        self._queue.put_nowait.remote([{"note": record.getMessage()}])


class _RecordSender:
    """Sends rank 0's records to the driver in batches, at most twice a second, without waiting for it."""

    def __init__(self, messages: "Queue", rank: int) -> None:
        self._queue: Any = messages.actor
        self._rank = rank
        self._queued: list[Record] = []
        self._sent = 0.0

    def __call__(self, record: Record) -> None:
        self._queued.append(record)
        if time.monotonic() - self._sent >= PROGRESS_SECONDS or "valid_wer" in record:
            self.flush()

    def flush(self) -> None:
        """Send the records that are queued."""
        if self._rank == 0 and self._queued:
            self._queue.put_nowait.remote(self._queued)
        self._queued, self._sent = [], time.monotonic()
