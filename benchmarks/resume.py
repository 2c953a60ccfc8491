"""`python -m benchmarks resume`: resuming in the middle of an epoch of a huge corpus, next to lhotse's sampler.

Both sides have the same durations and resume in the middle of their third epoch, as after a kill.

    ours    opens manifest and index, and computes the epoch's plan
    peer    `DynamicBucketingSampler.load_state_dict` with a state that was saved there, then the first batch

lhotse 2 (pre-releases only, so far) restores a sampler over an indexed manifest without drawing batches again; older
versions draw the epoch's batches up to that point once more. The peer uses the best that the installed version has,
and the result names both. Each side runs in a process of its own; saving the state and building the index that it
needs are not counted.
"""

import inspect
import json
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import BenchmarkResult, Figures, check_extras, run_process

if TYPE_CHECKING:
    from lhotse.dataset import DynamicBucketingSampler

EPOCH = 2  # the third
MAX_DURATION, PER_STEP = 100.0, 8
CUTS, STATE = "cuts.jsonl", "state.pickle"


def bench_resume(
    utterances: int = 1_000_000,
    *,
    with_peer: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchmarkResult:
    """Seconds and peak bytes of both sides for a manifest of `utterances`. The peer needs the extra `bench`."""
    from benchmarks.synthetic import write_synthetic_corpus

    if with_peer:
        check_extras("lhotse")
    with tempfile.TemporaryDirectory() as folder:
        hours = write_synthetic_corpus(folder, utterances)
        on_progress(1, 4)
        ours = run_process("benchmarks.resume", "ours", folder)
        on_progress(2, 4)
        peer: Figures = {}
        if with_peer:
            _write_cuts(folder)
            run_process("benchmarks.resume", "save", folder)
            on_progress(3, 4)
            peer = run_process("benchmarks.resume", "peer", folder)
        on_progress(4, 4)
    ratio = {key: peer[key] / ours[key] for key in ("seconds", "peak_rss_bytes") if key in peer}
    name = f"lhotse {version('lhotse')} DynamicBucketingSampler" if with_peer else ""
    return {
        "name": "resume",
        "ours": ours,
        "peer": {f"{name}, {key}": value for key, value in peer.items()},
        "ratio": {f"peer to ours, {key}": value for key, value in ratio.items()},
        "shape": f"{utterances:,} utterances, {hours:,.0f} h, to the middle of epoch {EPOCH + 1}",
    }


def _ours(folder: str) -> Figures:
    from foldray.data.epoch import plan_epoch
    from foldray.data.manifest import read_index, read_manifest

    began = time.perf_counter()
    index = read_index(folder, read_manifest(folder), "train")
    opened = time.perf_counter()
    plan = plan_epoch(index, seed=0, epoch=EPOCH, max_duration=MAX_DURATION, per_step=PER_STEP)
    first = next(plan.share(0, 2, len(plan) // 2))
    assert len(first)
    planned = time.perf_counter()
    return {"seconds": planned - began, "opening_s": opened - began, "planning_s": planned - opened}


# --- lhotse -----------------------------------------------------------------------------------------


def _sampler(folder: str, bins: list[float] | None = None) -> "DynamicBucketingSampler":
    """The sampler over the manifest, indexed if the installed lhotse can do that; bins: bucket bounds, if known."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler

    path = Path(folder, CUTS)
    cuts = CutSet.from_file(path, indexed=True) if _can_index() else CutSet.from_jsonl_lazy(path)
    options = {"num_buckets": PER_STEP, "shuffle": True, "seed": 0, "world_size": 1, "rank": 0}
    return DynamicBucketingSampler(cuts, max_duration=MAX_DURATION, duration_bins=bins, **options)


def _can_index() -> bool:
    from lhotse import CutSet

    return "indexed" in inspect.signature(CutSet.from_file).parameters


def _batches(folder: str) -> int:
    """About half of the batches of an epoch."""
    from foldray.data.manifest import read_manifest

    return int(read_manifest(folder).hours * 3600 / MAX_DURATION / 0.9 / 2)


def _save(folder: str) -> Figures:
    """Draw batches to the middle of the epoch, and save the sampler's state there."""
    sampler = _sampler(folder)
    sampler.set_epoch(EPOCH)
    batches = iter(sampler)
    for _ in range(_batches(folder)):
        next(batches)
    Path(folder, STATE).write_bytes(pickle.dumps((sampler.state_dict(), sampler.duration_bins)))
    return {}


def _peer(folder: str) -> Figures:
    state, bins = pickle.loads(Path(folder, STATE).read_bytes())
    redrawn = 0 if "bucketer_state" in state else _batches(folder)
    _sampler(folder, bins)  # imports are not counted
    began = time.perf_counter()
    sampler = _sampler(folder, bins)
    sampler.load_state_dict(state)
    next(iter(sampler))
    return {"seconds": time.perf_counter() - began, "batches_drawn_again": redrawn}


def _write_cuts(folder: str) -> None:
    """The same utterances as lhotse's cuts, in the shuffled order that lhotse's own tools leave them in."""
    import numpy as np
    from lhotse.testing.dummies import dummy_cut

    from foldray.config.corpus import SAMPLE_RATE
    from foldray.data.manifest import read_index, read_manifest

    samples = read_index(folder, read_manifest(folder), "train").num_samples
    cut = dummy_cut(0, duration=1.0).to_dict()
    with Path(folder, CUTS).open("w") as lines:
        for i in np.random.default_rng(1).permutation(len(samples)).tolist():
            cut.update(id=f"utterance-{i}", duration=int(samples[i]) / SAMPLE_RATE)
            cut["recording"].update(id=cut["id"], duration=cut["duration"], num_samples=int(samples[i]))
            lines.write(json.dumps(cut) + "\n")


if __name__ == "__main__":
    measured = {"ours": _ours, "save": _save, "peer": _peer}[sys.argv[1]](sys.argv[2])
    scale = 1 if sys.platform == "darwin" else 1024
    measured["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    print(json.dumps(measured))
