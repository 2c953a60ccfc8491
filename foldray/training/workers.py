"""The driver's side of a training run under Ray Train: starts the workers, receives records, reports why they ended."""

import dataclasses
import os
import queue
import signal
import tempfile
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from foldray import storage
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.results.metrics import Record
from foldray.runtime.ray import find_user_error, start_ray
from foldray.runtime.terminal import print_status
from foldray.training.fencing import Attempt, claim_submission
from foldray.training.job import TrainJob, WorkerOutcome, dump_job, load_job
from foldray.training.placement import here

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from foldray.training.ray_trainer import WorkerTrainer


def start_ray_for(spec: RunSpec) -> ModuleType:
    """Start Ray with room for a spec's workers and validation, or join the cluster. Returns the `ray` module."""
    return start_ray(cpus_needed(spec) + spec.scale.validation_resources.get("CPU", 0))


def run_workers(job: TrainJob, on_record: Callable[[Record], None]) -> int:
    """Run all workers of a job to the end of the training.

    Args:
        job: What to train.
        on_record: Receives rank 0's records, in a thread of its own.

    Returns:
        The last step.

    Raises:
        UserError: A worker raised one, or this machine's own Ray is too small.
    """
    ray = start_ray_for(job.spec)
    _check_resources(ray, job.spec)
    from ray.util.queue import Queue

    # On the driver's node, since a worker's node may be lost.
    messages = Queue(maxsize=1000, actor_options={"num_cpus": 0, "scheduling_strategy": here()})
    stop = threading.Event()
    listener = threading.Thread(target=_listen, args=(messages, stop, on_record), daemon=True)
    listener.start()
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        # Ray's own snapshots are of no use to us (checkpoints are ours), and a store that is away while Ray writes one
        # would end the run whatever max_failures says: they go to this machine and are removed.
        with tempfile.TemporaryDirectory() as snapshots:
            # Only now that this machine is known to have room: a start that fails must not stop one that runs.
            job = dataclasses.replace(job, submission=claim_submission(job.run).submission)
            outcome = _fit(_trainer(job, messages, snapshots))
    finally:
        _drain(messages, stop, listener)
        if threading.current_thread() is threading.main_thread():  # a trial of Ray Tune runs in another
            signal.signal(signal.SIGINT, on_interrupt)
    if "stopped" in outcome:
        raise UserError(*outcome["stopped"])
    return int(outcome["step"])


def _trainer(job: TrainJob, messages: "Queue", snapshots: str) -> "WorkerTrainer":
    """Return the Ray Train trainer of a job."""
    import ray.train

    from foldray.training.ray_trainer import WorkerBackendConfig, WorkerTrainer

    api: Any = ray.train  # typed as its first version
    scale = job.spec.scale
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
    name = f"{storage.split(job.run)[1]}-{Attempt(job.submission)}"
    return WorkerTrainer(
        train_in_worker,
        train_loop_config={"job": dump_job(job), "messages": messages},
        backend_config=WorkerBackendConfig(),
        scaling_config=scaling,
        run_config=api.RunConfig(name=name, storage_path=snapshots, failure_config=failures),
    )


def train_in_worker(config: dict[str, Any]) -> WorkerOutcome:
    """Run `train_worker`. Here, so that the driver and the controller need not import what only workers do."""
    from foldray.training.ray_worker import train_worker

    return train_worker(load_job(config["job"]), config["messages"])


def _fit(trainer: "WorkerTrainer") -> WorkerOutcome:
    """Train; return what rank 0 returned. Raises a worker's UserError as it was, KeyboardInterrupt on Ctrl-C."""
    try:
        result: Any = trainer.fit()  # typed as its first version
    except SystemExit:
        # Ray's own handler ends the process on Ctrl-C; the caller decides what to print.
        raise KeyboardInterrupt from None
    except UserError:
        raise
    except Exception as error:
        raise find_user_error(error) from error
    outcome: WorkerOutcome = result.return_value
    return outcome


def cpus_needed(spec: RunSpec) -> float:
    """Return the logical CPUs of all workers of a spec together."""
    return spec.scale.most_workers * spec.scale.resources_per_worker.get("CPU", 1.0)


def _drain(messages: "Queue", stop: threading.Event, listener: threading.Thread) -> None:
    """Receive what is left in the queue, then remove it."""
    stop.set()
    listener.join(timeout=5)
    messages.shutdown(force=True)


def _check_resources(ray: ModuleType, spec: RunSpec) -> None:
    """Raise UserError if a Ray on this machine alone is too small; a cluster may still grow."""
    if os.environ.get("RAY_ADDRESS"):
        return
    offered = ray.cluster_resources()
    validating = spec.scale.validation_resources.get("GPU", 0)
    gpus = spec.scale.least_workers * spec.scale.use_gpu * spec.scale.resources_per_worker.get("GPU", 1) + validating
    if offered.get("GPU", 0) < gpus:
        found = f"{offered.get('GPU', 0):g} GPUs, the workers and validation need {gpus:g}"
        field, fix = (
            ("use_gpu", "set it to false") if spec.scale.use_gpu else ("validation_resources", "ask for no GPU")
        )
        raise UserError(f"scale.{field}", f"this machine offers {found}; {fix} or join a cluster (RAY_ADDRESS)")
    needed = spec.scale.least_workers * spec.scale.resources_per_worker.get("CPU", 1.0)
    if offered.get("CPU", 0) < needed:
        problem = f"{offered.get('CPU', 0):g} CPUs, the workers need {needed:g}"
        raise UserError("scale.workers", f"Ray offers {problem}; lower scale.workers or scale.resources_per_worker")


def _listen(messages: "Queue", stop: threading.Event, on_record: Callable[[Record], None]) -> None:
    """Pass records on until `stop` is set and the queue is empty."""
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
                    print_status(f"note      {record['note']}")
                else:
                    on_record(record)
