"""`python -m benchmarks train`: utterances per second under Ray Train and in bare PyTorch loops, with 1 and 2 workers.

    ours        what `foldray train` runs: Ray Train workers, batches streamed from shards by a thread of each worker,
                checkpoints written asynchronously
    bare        a plain loop over the same batches that decodes them itself; no Ray, no shards, no checkpoints
    dataloader  the same with a process of torch's DataLoader that decodes ahead

Every worker has one core: it computes on one thread, and that thread and its decoding are pinned to the core (on
Linux). Ray's own processes are not. Sides alternate; the first steps and the start-up of each are not counted.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import BenchmarkResult, Figures, check_extras, hold_to_core, run_process
from foldray.results.metrics import Record

if TYPE_CHECKING:
    from foldray.config.spec import RunSpec

SIDES = ("ours", "bare", "dataloader")
WORKERS = (1, 2)
MINUTES = 25.0
# With the two micro-batches per step of `quickstart`, each of two workers would have one: both wait for the longer, and
# the optimiser's work, which does not divide, weighs more than in runs where data parallelism pays.
PER_STEP = 8
STEPS, UNCOUNTED = 20, 6
CHECKPOINT_EVERY = 7


def bench_train(
    rounds: int = 5, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> BenchmarkResult:
    """Utterances and audio seconds per second of all sides, medians over the rounds, and our share of waiting."""
    check_extras("espeakng_loader", "psutil")
    kinds = [(side, workers) for workers in WORKERS for side in SIDES]
    measured: dict[tuple[str, int], list[Figures]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        corpus = _prepared(folder)
        for done, (side, workers) in enumerate(kinds * rounds):
            with tempfile.TemporaryDirectory() as own:
                figures = run_process("benchmarks.train", side, str(workers), corpus, own)
            measured[side, workers].append(figures)
            on_progress(done + 1, len(kinds) * rounds)
    median = {kind: _medians(figures) for kind, figures in measured.items()}
    speed = {kind: figures["utterances_per_second"] for kind, figures in median.items()}
    return {
        "name": "train",
        "ours": {_name(workers): median["ours", workers] for workers in WORKERS},
        "peer": {f"{side}, {_name(workers)}": median[side, workers] for side in SIDES[1:] for workers in WORKERS},
        "ratio": {
            **{
                f"ours to {side}, {_name(workers)}": speed["ours", workers] / speed[side, workers]
                for side in SIDES[1:]
                for workers in WORKERS
            },
            **{f"two workers to one, {side}": speed[side, 2] / speed[side, 1] for side in SIDES},
        },
        "shape": f"recipe quickstart, float32, {MINUTES:g} min of speech, steps {UNCOUNTED + 1} to {STEPS} of "
        f"{PER_STEP} micro-batches, a checkpoint every {CHECKPOINT_EVERY}, one core per worker, {rounds} rounds",
    }


def _name(workers: int) -> str:
    return f"{workers} worker" if workers == 1 else f"{workers} workers"


def _medians(rounds: list[Figures]) -> Figures:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def _prepared(folder: str) -> str:
    """A prepared corpus without a validation split, so that nothing is scored during training."""
    from foldray.config.corpus import CorpusSpec
    from foldray.data.builtin import write_builtin_corpus
    from foldray.data.corpora import find_corpus
    from foldray.data.prepare import prepare

    voices = Path(folder, "voices")
    write_builtin_corpus(voices, train_minutes=MINUTES, test_minutes=0.1)
    spec = CorpusSpec(path=str(voices), splits=("train",), valid_fraction=0.0)
    return prepare(find_corpus(spec, folder), spec, folder)[0]


# --- The sides -------------------------------------------------------------------------------------


def _spec(workers: int) -> "RunSpec":
    """The recipe quickstart, with AdamW at a constant learning rate and no augmentation, as in a plain loop."""
    from foldray.config.recipes import load_recipe

    plain = ["optim.lr=5e-4", "optim.warmup=0", "optim.schedule=constant", "optim.weight_decay=0", "optim.kind=adamw"]
    plain += ["augment.speeds=[1.0]", "augment.noise_share=0", "augment.volume_db=0"]
    length = ["optim.epochs=null", f"optim.steps={STEPS}", "batch.shortest_first=0", f"batch.per_step={PER_STEP}"]
    return load_recipe(
        "quickstart",
        [*plain, *length, f"checkpoint.every_steps={CHECKPOINT_EVERY}", f"scale.workers={workers}"],
    )


def _ours(spec: "RunSpec", corpus: str, folder: str) -> tuple[list[float], Figures]:
    from foldray.results.metrics import read_metrics
    from foldray.training.launch import describe, train

    run = f"{folder}/run"
    describe(spec, corpus, run)
    train(spec, corpus, run, on_record=_Pinning())
    records = read_metrics(run)
    seconds = [float(record["seconds"]) for record in records]
    # The time that a checkpoint takes from the training thread is part of the next step's seconds.
    stalls = sum(record.get("checkpoint_seconds", 0.0) for record in records[UNCOUNTED - 1 : -1])
    waits = sum(record["data_wait"] for record in records[UNCOUNTED:])
    total = sum(seconds[UNCOUNTED:])
    return seconds, {"checkpoint_stall_share": stalls / total, "data_wait_share": waits / total}


class _Pinning:
    """Pins each of this process's training workers to one core, as soon as the first step is recorded."""

    def __init__(self) -> None:
        self._done = False

    def __call__(self, _record: Record) -> None:
        import psutil

        if self._done:
            return
        below = psutil.Process().children(recursive=True)
        workers = [each for each in below if "".join(each.cmdline()[:1]).startswith("ray::RayTrainWorker")]
        for number, worker in enumerate(workers):
            for thread in worker.threads():
                hold_to_core(number, thread.id)
        self._done = True


def _bare(spec: "RunSpec", corpus: str, folder: str, *, ahead: bool = False) -> tuple[list[float], Figures]:
    from benchmarks.bare_loop import run_bare

    return [record["seconds"] for record in run_bare(spec, corpus, folder, ahead=ahead)], {}


def _dataloader(spec: "RunSpec", corpus: str, folder: str) -> tuple[list[float], Figures]:
    return _bare(spec, corpus, folder, ahead=True)


def _measure(side: str, workers: int, corpus: str, folder: str) -> Figures:
    from benchmarks.bare_loop import planned_steps
    from foldray.config.corpus import SAMPLE_RATE
    from foldray.data.manifest import read_index, read_manifest

    began = time.perf_counter()
    spec = _spec(workers)
    sides = {"ours": _ours, "bare": _bare, "dataloader": _dataloader}
    seconds, more = sides[side](spec, corpus, folder)
    whole = time.perf_counter() - began
    index = read_index(corpus, read_manifest(corpus), "train")
    counted = [position for step in planned_steps(spec, index)[UNCOUNTED:] for batch in step for position in batch]
    total = sum(seconds[UNCOUNTED:])
    return {
        "utterances_per_second": len(counted) / total,
        "audio_seconds_per_second": float(index.num_samples[counted].sum()) / SAMPLE_RATE / total,
        "seconds_per_step": total / (STEPS - UNCOUNTED),
        "startup_and_end_s": whole - sum(seconds),
        **more,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])))
