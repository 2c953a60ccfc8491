"""A training run from its spec: its initial weights, its provenance, its workers, and what came of it."""

import dataclasses
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldray import storage
from foldray.config.spec import RunSpec
from foldray.data.manifest import read_manifest
from foldray.models.stock import write_random_checkpoint
from foldray.models.stock_config import find_checkpoint
from foldray.results.metrics import Record, read_metrics
from foldray.storage.layout import CONFIG_FILE, Run
from foldray.training.checkpoint import whole_checkpoints
from foldray.training.context import TrainJob
from foldray.training.final_model import is_finished
from foldray.training.tracking import tracking
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
    """Train `spec` on a prepared corpus, or go on with it, or do nothing if its model is there.

    `on_record` sees every step's metrics, in handfuls about twice a second, and each validation's.
    """
    run_id = Run(run).run_id
    if is_finished(run):
        last = read_metrics(run)[-1]["step"]
        return TrainedRun(run_id, run, last, last)
    found = [each.step for each in whole_checkpoints(run)]
    resumed = found[-1] if found else 0
    # With a checkpoint nothing else is needed: it opens by itself, also where the initial weights never were.
    init = "" if found else _initial_weights(spec, run, corpus)
    with tracking(spec, run_id, run, resumed + 1) as track:

        def heard(record: Record) -> None:
            on_record(record)
            track(record)

        step = run_workers(TrainJob(spec, run, corpus, init), heard)
    return TrainedRun(run_id, run, step, resumed)


def describe(spec: RunSpec, corpus: str, run: str) -> None:
    """Write `spec.json`, all that `foldray resume` needs, and `run.json`, what the spec does not say."""
    storage.write_bytes(Run(run).spec, (spec.model_dump_json(indent=1) + "\n").encode())
    # Once: what began the run stays its provenance; later attempts are in `attempts/`.
    storage.create_json(Run(run).facts, describe_run(spec, corpus))


def run_uri(spec: RunSpec, run_id: str) -> str:
    """Where a run of this spec's store is."""
    return spec.store.run(run_id).uri


def _initial_weights(spec: RunSpec, run: str, corpus: str) -> str:
    """The stock checkpoint to start from: the recipe's, or a random one written beside the run."""
    checkpoint = find_checkpoint(spec.found_model().checkpoint)
    if checkpoint:
        return checkpoint
    init = Run(run).init
    if not storage.exists(init.file(CONFIG_FILE)):
        with tempfile.TemporaryDirectory() as made:
            tokenizer = read_manifest(corpus).tokenizer
            write_random_checkpoint(spec.model, spec.fold.num_layers, tokenizer, spec.seed, Path(made))
            storage.upload(Path(made), init.uri, last=CONFIG_FILE)
    return init.uri


def describe_run(spec: RunSpec, corpus: str) -> dict[str, Any]:
    """What the spec does not say: the corpus it met, when, and with which versions."""
    from importlib.metadata import version

    packages = ("foldray", "torch", "torchaudio", "transformers", "ray", "pyarrow", "numpy")
    manifest = read_manifest(corpus)
    return {
        "corpus": corpus,
        "corpus_id": manifest.corpus_id,
        "spec_hash": spec.spec_hash(manifest.corpus_id, manifest.tokenizer.digest),
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
