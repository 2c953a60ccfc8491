"""The workers of a training run under Ray Train: how they are started, what they tell, why they ended."""

import dataclasses
import json
import logging
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch

from foldray import storage
from foldray.errors import UserError
from foldray.results.metrics import Record
from foldray.session import start_ray
from foldray.spec import RunSpec
from foldray.terminal import say
from foldray.training.attempts import Attempt, claim_submission
from foldray.training.finish import finish_run
from foldray.training.job import Stopped, Surroundings, TrainJob, Worker
from foldray.training.loop import train_model
from foldray.training.validation import validate_checkpoint

PROGRESS_SECONDS = 0.5
EXCHANGE_SECONDS = 6 * 3600
"""How long an exchange between workers may take. By default it is given up after half an hour, but one of them may wait
longer for a store that is away (FOLDRAY_STORAGE_RETRY_SECONDS); Ray itself notices those that died."""


def run_workers(job: TrainJob, on_record: Callable[[Record], None]) -> int:
    """Run the workers to the end; returns the last step. Raises UserError where a worker met one."""
    scale = job.spec.scale
    asked = job.spec.scale.validation_resources
    started = start_ray(cpus_needed(job.spec) + asked.get("CPU", 0))
    _check_resources(started, job.spec)
    import ray.train.torch
    from ray.util.queue import Queue

    # Beside the driver, since a worker's node may be lost.
    messages = Queue(maxsize=1000, actor_options={"num_cpus": 0, "scheduling_strategy": _here(started)})
    api: Any = ray.train  # typed as its first version
    scaling = api.ScalingConfig(
        num_workers=scale.workers,
        placement_strategy=scale.placement,
        use_gpu=scale.use_gpu,
        resources_per_worker=scale.resources_per_worker or None,
        elastic_resize_monitor_interval_s=scale.elastic_resize_monitor_interval_s,
    )
    failures = api.FailureConfig(
        max_failures=scale.max_failures,
        max_preemption_failures=scale.max_preemption_failures,
        controller_failure_limit=scale.controller_failure_limit,
        preemption_grace_s=scale.preemption_grace_s,
    )
    stop = threading.Event()
    listener = threading.Thread(target=_listen, args=(messages, stop, on_record), daemon=True)
    listener.start()
    on_interrupt = signal.getsignal(signal.SIGINT)
    # Ray's own snapshots are of no use to us (checkpoints are ours) and a store that is away while Ray writes
    # one would end the run, whatever max_failures says: they go to this machine and are forgotten.
    try:
        with tempfile.TemporaryDirectory() as snapshots:
            # Not before this machine is known to be able to: whoever can't train must not stop the one that does.
            job = dataclasses.replace(job, submission=claim_submission(job.run).submission)
            name = f"{storage.split(job.run)[1]}-{Attempt(job.submission)}"
            trainer = api.torch.TorchTrainer(
                _worker_main,
                train_loop_config={"job": _dump_job(job), "messages": messages},
                torch_config=api.torch.TorchConfig(timeout_s=EXCHANGE_SECONDS),
                scaling_config=scaling,
                run_config=api.RunConfig(name=name, storage_path=snapshots, failure_config=failures),
            )
            try:
                result = trainer.fit()
            except SystemExit:
                # Ray's own handler ends the process on Ctrl-C; whoever called decides what to say.
                raise KeyboardInterrupt from None
            except UserError:
                raise
            except Exception as error:
                raise _cause(error) from error
    finally:
        _drain(messages, stop, listener)
        if threading.current_thread() is threading.main_thread():  # a trial of Ray Tune runs in another
            signal.signal(signal.SIGINT, on_interrupt)
    said = result.return_value
    if "stopped" in said:
        raise UserError(*said["stopped"])
    return int(said["step"])


def cpus_needed(spec: RunSpec) -> float:
    """Logical CPUs that all workers of a spec take together."""
    return spec.scale.most_workers * spec.scale.resources_per_worker.get("CPU", 1.0)


def _here(ray: Any, *, soft: bool = False) -> Any:
    """Ray's way to say: on this very node; `soft`: or elsewhere, where it is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)


def _drain(messages: Any, stop: threading.Event, listener: threading.Thread) -> None:
    """Hear what is left in the queue, then let it go."""
    stop.set()
    listener.join(timeout=5)
    messages.shutdown(force=True)


def _check_resources(ray: Any, spec: RunSpec) -> None:
    """Refuse what a Ray on this machine alone could never start; a cluster may still grow. Raises UserError."""
    if os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources()
    validating = spec.scale.validation_resources.get("GPU", 0)
    gpus = spec.scale.least_workers * spec.scale.use_gpu * spec.scale.resources_per_worker.get("GPU", 1) + validating
    if there.get("GPU", 0) < gpus:
        found = f"{there.get('GPU', 0):g} GPUs, the workers and validation need {gpus:g}"
        field, mend = (
            ("use_gpu", "set it to false") if spec.scale.use_gpu else ("validation_resources", "ask for no GPU")
        )
        raise UserError(f"scale.{field}", f"this machine offers {found}; {mend} or join a cluster (RAY_ADDRESS)")
    needed = spec.scale.least_workers * spec.scale.resources_per_worker.get("CPU", 1.0)
    if there.get("CPU", 0) < needed:
        offered = f"{there.get('CPU', 0):g} CPUs, the workers need {needed:g}"
        raise UserError("scale.workers", f"Ray offers {offered}; lower scale.workers or scale.resources_per_worker")


def _listen(messages: Any, stop: threading.Event, on_record: Callable[[Record], None]) -> None:
    """Pass records on until told to stop and nothing is left."""
    from ray.util.queue import Empty

    while True:
        try:
            records = messages.get(timeout=0.5)
        except (Empty, queue.Empty):
            if stop.is_set():
                return
        except Exception:  # the queue's actor went with the cluster; fit() reports why
            return
        else:
            for record in records:
                if "note" in record:
                    say(f"note      {record['note']}")
                else:
                    on_record(record)


def _cause(error: BaseException) -> BaseException:
    """The UserError a worker raised, if that is what ended the run."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, UserError):
            return failure
    return error


def _dump_job(job: TrainJob) -> str:
    return json.dumps({**dataclasses.asdict(job), "spec": job.spec.model_dump(mode="json")})


def _load_job(dumped: str) -> TrainJob:
    values = json.loads(dumped)
    return TrainJob(**{**values, "spec": RunSpec(**values["spec"])})


def _worker_main(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs; `fit` hears what the first one returns."""
    import ray.train
    from ray.train.torch import get_device

    job = _load_job(config["job"])
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
    if missing := worker.how_many(not storage.exists(storage.join(run, "spec.json"))):
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
        scheduling_strategy="DEFAULT" if job.spec.scale.validation_resources else _here(ray, soft=True),
        max_retries=3,
    )(_validate)
    reference = task.remote(_dump_job(job), step, uri)
    scoring: Future[Record] = reference.future()
    return scoring


def _validate(dumped: str, step: int, uri: str) -> Record:
    job = _load_job(dumped)
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
