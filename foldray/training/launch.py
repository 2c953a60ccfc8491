"""Start or resume a training run from its spec: provenance, trackers, workers."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldray import storage
from foldray.config.spec import RunSpec
from foldray.data.manifest import read_manifest
from foldray.results.metrics import Record, read_metrics
from foldray.storage.layout import Run
from foldray.training.job import TrainJob
from foldray.training.run_folder import is_finished, whole_checkpoints
from foldray.training.tracker_feed import feed_trackers
from foldray.training.workers import run_workers


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run: its id and URI, its last step, and the step it was resumed from (0 if never)."""

    run_id: str
    run: str
    step: int
    resumed_from_step: int


def train(
    spec: RunSpec, corpus: str, run: str, *, on_record: Callable[[Record], None] = lambda record: None
) -> TrainedRun:
    """Train a spec on a prepared corpus, resume its run, or do nothing if the run is finished.

    Args:
        spec: The spec.
        corpus: URI of the prepared corpus.
        run: URI of the run.
        on_record: Receives the metrics of every step, in batches about twice a second, and of every validation.

    Raises:
        UserError: The run cannot be trained, with the field to change.
    """
    run_id = Run(run).run_id
    if is_finished(run):
        last = read_metrics(run)[-1]["step"]
        return TrainedRun(run_id, run, last, last)
    found = [each.step for each in whole_checkpoints(run)]
    resumed = found[-1] if found else 0
    # A checkpoint of the run needs no initial weights: it is complete, even where these are out of reach.
    init = "" if found else _initial_weights(spec, run)
    with feed_trackers(spec, run_id, run, resumed + 1) as track:

        def receive(record: Record) -> None:
            on_record(record)
            track(record)

        step = run_workers(TrainJob(spec, run, corpus, init), receive)
    return TrainedRun(run_id, run, step, resumed)


def describe(spec: RunSpec, corpus: str, run: str) -> None:
    """Write `spec.json`, which `foldray resume` needs, and `run.json`, the provenance that is not in the spec."""
    storage.write_bytes(Run(run).spec, (spec.model_dump_json(indent=1) + "\n").encode())
    # Once: provenance is that of the first attempt; later ones are in `attempts/`.
    storage.create_json(Run(run).facts, describe_run(spec, corpus))


def run_uri(spec: RunSpec, run_id: str) -> str:
    """Return the URI of a run in this spec's store."""
    return spec.store.run(run_id).uri


def _initial_weights(spec: RunSpec, run: str) -> str:
    """Return where the stock checkpoint to start from is: the recipe's, or a random one that the workers write."""
    checkpoint = spec.planned_model().model.checkpoint
    if checkpoint is None:
        return Run(run).init.uri
    from foldray.models.stock_config import find_checkpoint

    return find_checkpoint(checkpoint)


def describe_run(spec: RunSpec, corpus: str) -> dict[str, Any]:
    """Return the provenance that is not in the spec: corpus, time, versions, git commit."""
    from importlib.metadata import version

    packages = ("foldray", "torch", "torchaudio", "transformers", "ray", "pyarrow", "numpy")
    manifest, checkpoint = read_manifest(corpus), spec.planned_model().model.checkpoint
    return {
        "corpus": corpus,
        "corpus_id": manifest.corpus_id,
        "spec_hash": spec.spec_hash(manifest.corpus_id, manifest.tokenizer.digest),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in packages},
        "git_commit": _git_commit(),
        "local_checkpoint": bool(checkpoint) and Path(str(checkpoint)).expanduser().is_dir(),
    }


def _git_commit() -> str:
    import subprocess
    from shutil import which

    if not (git := which("git")):
        return ""
    result = subprocess.run(
        [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() if result.returncode == 0 else ""
