"""Running the training loop under Ray Train: workers, progress, the finished model."""

import dataclasses
import json
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from foldray import storage
from foldray.configuration import find_checkpoint
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.model_folder import save_model
from foldray.plan import FOLD_FILE
from foldray.pretrained import write_random_checkpoint
from foldray.results.metrics import Record, read_metrics
from foldray.session import start_ray
from foldray.spec import RunSpec
from foldray.training.checkpoint import whole_checkpoints
from foldray.training.job import TrainJob, Worker
from foldray.training.loop import train_model

PROGRESS_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run: its id and URI, its last step, and the step it was resumed from (0 if never)."""

    run_id: str
    run: str
    step: int
    resumed_from_step: int


def train(spec: RunSpec, corpus: str, *, on_record: Callable[[Record], None] = lambda record: None) -> TrainedRun:
    """Train `spec` on a prepared corpus, or go on with it, or do nothing if its model is there.

    `on_record` sees the newest metrics about twice a second.
    """
    manifest = read_manifest(corpus)
    run_id = spec.run_id(manifest.corpus_id, manifest.units.digest)
    run = run_uri(spec, run_id)
    if is_finished(run):
        last = read_metrics(run)[-1]["step"]
        return TrainedRun(run_id, run, last, last)
    found = [step for step, _ in whole_checkpoints(run)]
    attempt = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    job = TrainJob(spec, run, corpus, _initial_weights(spec, run, corpus), attempt)
    storage.write_bytes(storage.join(run, "spec.json"), (spec.model_dump_json(indent=1) + "\n").encode())
    storage.write_json(storage.join(run, "run.json"), describe_run(spec, corpus))
    step = _fit(job, on_record)
    return TrainedRun(run_id, run, step, found[-1] if found else 0)


def run_uri(spec: RunSpec, run_id: str) -> str:
    """Where a run of this spec's store is."""
    return storage.join(storage.absolute(spec.storage.root), "runs", run_id)


def is_finished(run: str) -> bool:
    """Whether the run's model is there, whole."""
    return storage.exists(storage.join(run, "model", FOLD_FILE))


def cpus_needed(spec: RunSpec) -> float:
    """Logical CPUs that all workers of a spec take together."""
    return spec.scale.most_workers * spec.scale.resources_per_worker.get("CPU", 1.0)


def _initial_weights(spec: RunSpec, run: str, corpus: str) -> str:
    """The stock checkpoint to start from: the recipe's, or a random one written beside the run."""
    checkpoint = find_checkpoint(spec.model.checkpoint)
    if checkpoint:
        return checkpoint
    init = storage.join(run, "init")
    if not storage.exists(storage.join(init, "config.json")):
        with tempfile.TemporaryDirectory() as made:
            units = read_manifest(corpus).units
            write_random_checkpoint(spec.model, spec.fold.num_layers, units, spec.seed, Path(made))
            storage.upload(Path(made), init, last="config.json")
    return init


def describe_run(spec: RunSpec, corpus: str) -> dict[str, Any]:
    """What the spec does not say: the corpus it met, when, and with which versions."""
    from importlib.metadata import version

    packages = ("foldray", "torch", "torchaudio", "transformers", "ray", "pyarrow", "numpy")
    manifest = read_manifest(corpus)
    return {
        "corpus": corpus,
        "corpus_id": manifest.corpus_id,
        "spec_hash": spec.spec_hash(manifest.corpus_id, manifest.units.digest),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in packages},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    import subprocess

    asked = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _fit(job: TrainJob, on_record: Callable[[Record], None]) -> int:
    """Run the workers to the end; returns the last step. Raises UserError where a worker met one."""
    scale = job.spec.scale
    _check_resources(start_ray(cpus_needed(job.spec)), job.spec)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    messages = Queue(maxsize=1000, actor_options={"num_cpus": 0})
    scaling = ScalingConfig(
        num_workers=scale.workers, placement_strategy=scale.placement, use_gpu=scale.use_gpu, resources_per_worker=scale.resources_per_worker or None
    )
    stop = threading.Event()
    listener = threading.Thread(target=_listen, args=(messages, stop, on_record), daemon=True)
    listener.start()
    on_interrupt = signal.getsignal(signal.SIGINT)
    # Ray's own snapshots are of no use to us (checkpoints are ours) and a store that is away while Ray writes
    # one would end the run, whatever max_failures says: they go to this machine and are forgotten.
    with tempfile.TemporaryDirectory() as snapshots:
        trainer = TorchTrainer(
            _worker_main,
            train_loop_config={"job": _dump_job(job), "messages": messages},
            scaling_config=scaling,
            run_config=RunConfig(
                name=job.attempt,
                storage_path=snapshots,
                failure_config=FailureConfig(max_failures=scale.max_failures),
            ),
        )
        try:
            trainer.fit()
        except SystemExit:
            # Ray's own handler ends the process on Ctrl-C; whoever called decides what to say.
            raise KeyboardInterrupt from None
        except Exception as error:
            raise _cause(error) from error
        finally:
            signal.signal(signal.SIGINT, on_interrupt)
            stop.set()
            listener.join(timeout=5)
            messages.shutdown(force=True)
    return int(read_metrics(job.run)[-1]["step"])


def _check_resources(ray: Any, spec: RunSpec) -> None:
    """Refuse what a Ray on this machine alone could never start; a cluster may still grow. Raises UserError."""
    if "RAY_ADDRESS" in os.environ:
        return
    there = ray.cluster_resources()
    if spec.scale.use_gpu and there.get("GPU", 0) < spec.scale.least_workers:
        found = f"{there.get('GPU', 0):g} GPUs for {spec.scale.least_workers} workers"
        raise UserError(
            "scale.use_gpu", f"this machine offers {found}; set it to false or join a cluster (RAY_ADDRESS)"
        )
    if there.get("CPU", 0) < cpus_needed(spec):
        needed = f"{there.get('CPU', 0):g} CPUs, the workers need {cpus_needed(spec):g}"
        raise UserError("scale.workers", f"Ray offers {needed}; lower scale.workers or scale.resources_per_worker")


def _listen(messages: Any, stop: threading.Event, on_record: Callable[[Record], None]) -> None:
    from ray.util.queue import Empty

    while not stop.is_set():
        try:
            on_record(messages.get(timeout=0.5))
        except (Empty, queue.Empty):
            continue
        except Exception:  # the queue's actor went with the cluster; fit() reports why
            return


def _cause(error: BaseException) -> BaseException:
    """The UserError a worker raised, if that is what ended the run."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, UserError):
            return failure
    return error


def _dump_job(job: TrainJob) -> str:
    return json.dumps({**dataclasses.asdict(job), "spec": job.spec.model_dump(mode="json")})


def _worker_main(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    from ray.train.torch import get_device

    values = json.loads(config["job"])
    job = TrainJob(**{**values, "spec": RunSpec(**values["spec"])})
    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), get_device())
    if worker.device.type == "cpu":
        # Late in training many activations and moments fall below normal numbers, which CPUs do slowly.
        torch.set_flush_denormal(True)
        torch.set_num_threads(max(1, int(job.spec.scale.resources_per_worker.get("CPU", 1))))
    trained = train_model(job, worker, _Messenger(config["messages"], worker.rank))
    if worker.rank == 0:
        finish_run(job, trained.model)
    ray.train.report({"step": trained.step})


def finish_run(job: TrainJob, model: Any) -> None:
    """Write the foldable model; `fold.json` goes last and says it is whole."""
    units = read_manifest(job.corpus).units
    with tempfile.TemporaryDirectory() as made:
        save_model(model, made, units)
        storage.upload(Path(made), storage.join(job.run, "model"), last=FOLD_FILE)


class _Messenger:
    """Passes rank 0's newest metrics on, at most twice a second, and never waits for a reader."""

    def __init__(self, messages: Any, rank: int) -> None:
        self._messages = messages
        self._rank = rank
        self._sent = 0.0

    def __call__(self, record: Record) -> None:
        now = time.monotonic()
        if self._rank == 0 and (now - self._sent >= PROGRESS_SECONDS or "valid_ctc" in record):
            self._messages.actor.put_nowait.remote(record)
            self._sent = now
