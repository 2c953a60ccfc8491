"""The workers of a training run under Ray Train: how they are started, what they tell, why they ended."""

import dataclasses
import os
import queue
import signal
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from foldray import storage
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.results.metrics import Record
from foldray.runtime.ray import start_ray
from foldray.runtime.terminal import print_status
from foldray.training.context import TrainJob, dump_job
from foldray.training.fencing import Attempt, claim_submission
from foldray.training.ray_worker import here, train_as_worker

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
    messages = Queue(maxsize=1000, actor_options={"num_cpus": 0, "scheduling_strategy": here(started)})
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
                train_as_worker,
                train_loop_config={"job": dump_job(job), "messages": messages},
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
                    print_status(f"note      {record['note']}")
                else:
                    on_record(record)


def _cause(error: BaseException) -> BaseException:
    """The UserError a worker raised, if that is what ended the run."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, UserError):
            return failure
    return error
