"""`foldray bench resume`: going on in the middle of an epoch of a huge corpus, beside lhotse's bucketing sampler.

Both get the same durations and are to stand in the middle of their third epoch, as after a kill. Ours
opens manifest and index and computes the epoch's plan; lhotse's `DynamicBucketingSampler` restores its
state, for which it draws the epoch's batches up to there once more. Each runs in a process of its own,
which tells its peak memory.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import check_extras, run_process

EPOCH = 2  # the third
MAX_DURATION, PER_STEP = 100.0, 8
CUTS = "cuts.jsonl"


def bench_resume(
    utterances: int = 1_000_000,
    *,
    with_peer: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Seconds and peak bytes of both, for a manifest of that many utterances. The peer needs the extra `bench`."""
    from benchmarks.synthetic import write_synthetic_corpus

    if with_peer:
        check_extras("lhotse")
    with tempfile.TemporaryDirectory() as folder:
        hours = write_synthetic_corpus(folder, utterances)
        on_progress(1, 3)
        ours = run_process("benchmarks.resume", "ours", folder)
        on_progress(2, 3)
        if with_peer:
            _write_cuts(folder)
        peer = run_process("benchmarks.resume", "peer", folder) if with_peer else {}
        on_progress(3, 3)
    ratio = {key: peer[key] / ours[key] for key in ("seconds", "peak_rss_bytes") if key in peer}
    return {
        "name": "resume",
        "ours": ours,
        "peer": {f"lhotse DynamicBucketingSampler, {key}": value for key, value in peer.items()},
        "ratio": {f"peer to ours, {key}": value for key, value in ratio.items()},
        "shape": f"{utterances:,} utterances, {hours:,.0f} h, to the middle of epoch {EPOCH + 1}",
    }


def _ours(folder: str) -> dict[str, float]:
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


def _peer(folder: str) -> dict[str, float]:
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from lhotse import CutSet
    from lhotse.dataset import DynamicBucketingSampler

    from foldray.data.manifest import read_manifest

    batches = int(read_manifest(folder).hours * 3600 / MAX_DURATION / 0.9 / 2)

    def sampler() -> Any:
        cuts = CutSet.from_jsonl_lazy(Path(folder, CUTS))
        options = {"num_buckets": 8, "shuffle": True, "seed": 0, "world_size": 1, "rank": 0}
        return DynamicBucketingSampler(cuts, max_duration=MAX_DURATION, **options)

    state = sampler().state_dict()
    state["epoch"] = EPOCH
    counts = {"kept_cuts": 0, "discarded_cuts": 0, "kept_batches": batches, "discarded_batches": 0}
    state["diagnostics"] = {"current_epoch": EPOCH, "stats_per_epoch": {EPOCH: {"epoch": EPOCH, **counts}}}
    began = time.perf_counter()
    restored = sampler()
    restored.load_state_dict(state)
    next(iter(restored))
    return {"seconds": time.perf_counter() - began, "batches_drawn_again": batches}


def _write_cuts(folder: str) -> None:
    """The same utterances as lhotse's cuts, in shuffled order as its own tools leave them."""
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
    measured = {"ours": _ours, "peer": _peer}[sys.argv[1]](sys.argv[2])
    scale = 1 if sys.platform == "darwin" else 1024
    measured["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    print(json.dumps(measured))
