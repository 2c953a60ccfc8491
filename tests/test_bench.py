"""Benchmarks: the peer of `foldray bench train` does the work that ours does."""

from pathlib import Path

import pytest

from foldray.bench.bare_loop import run_bare
from foldray.data.manifest import Manifest
from foldray.results.metrics import read_metrics
from foldray.spec_input import override_spec
from foldray.training.job import TrainJob, Worker
from foldray.training.loop import train_model
from tests.test_training import job_for


@pytest.mark.parametrize(("workers", "ahead"), [(1, True), (2, False)])
def test_the_bare_loop_reaches_the_losses_of_ours(
    workers: int, ahead: bool, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    """Over the end of an epoch, whose last step is too short for two workers."""
    job = job_for("parakeet", prepared, tmp_path / "ours", per_step=2, steps=8)
    still = [f"model.config.{name}=0" for name in ("dropout", "activation_dropout", "attention_dropout")]
    plain = ["augment.time_masks=0", "augment.frequency_masks=0", "optim.warmup=0", "optim.schedule=constant"]
    spec = override_spec(job.spec, [*still, *plain, "optim.weight_decay=0", f"scale.workers={workers}"])
    train_model(TrainJob(spec, job.run, job.corpus, job.init), Worker())
    (tmp_path / "bare").mkdir()
    told = run_bare(spec, job.corpus, str(tmp_path / "bare"), ahead=ahead)
    ours = read_metrics(job.run)
    assert ours[-1]["epoch"] > 0
    for one, other in zip(told, ours, strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        if workers == 1:  # of two, the first knows its own share only
            assert one["ctc"] == pytest.approx(other["ctc"], rel=1e-4)
