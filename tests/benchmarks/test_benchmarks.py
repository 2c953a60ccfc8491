"""Benchmarks: the peer of `foldray bench train` does the work that ours does."""

from pathlib import Path

import pytest

from benchmarks.bare_loop import run_bare
from benchmarks.one_cycle import FOLDS, bench_one_cycle, counted_macs, small_conformer
from foldray.config.load import override_spec
from foldray.data.manifest import Manifest
from foldray.folding.plan import FoldPlan
from foldray.models.costs import costs_of
from foldray.results.metrics import read_metrics
from foldray.training.context import WorkerContext
from foldray.training.job import TrainJob
from foldray.training.loop import train_model
from tests.support.training import job_for


@pytest.mark.soak
@pytest.mark.parametrize(("workers", "ahead"), [(1, True), (2, False)])
def test_the_bare_loop_reaches_the_losses_of_ours(
    workers: int, ahead: bool, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    """Over the end of an epoch, whose last step is too short for two workers."""
    job = job_for("parakeet", prepared, tmp_path / "ours", per_step=2, steps=8)
    still = [f"model.config.{name}=0" for name in ("dropout", "activation_dropout", "attention_dropout")]
    plain = ["augment.time_masks=0", "augment.frequency_masks=0", "optim.warmup=0", "optim.schedule=constant"]
    spec = override_spec(job.spec, [*still, *plain, "optim.weight_decay=0", f"scale.workers={workers}"])
    train_model(TrainJob(spec, job.run, job.corpus, job.init), WorkerContext())
    (tmp_path / "bare").mkdir()
    told = run_bare(spec, job.corpus, str(tmp_path / "bare"), ahead=ahead)
    ours = read_metrics(job.run)
    assert ours[-1]["epoch"] > 0
    for one, other in zip(told, ours, strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        if workers == 1:  # of two, the first knows its own share only
            assert one["ctc"] == pytest.approx(other["ctc"], rel=1e-4)


@pytest.mark.main
def test_what_a_cycle_costs_by_counting() -> None:
    """Of one path what the account says; of several, a block for each different prefix of theirs."""
    alone = {depth: small_conformer(FoldPlan(depth, (depth,))) for depth in (6, 9, 12)}
    count = counted_macs(alone[6], alone[12])
    whole = {depth: costs_of(model)[-1].macs_per_audio_second for depth, model in alone.items()}
    for depth, macs in whole.items():
        assert count(FoldPlan(depth, (depth,))) == pytest.approx(macs, rel=1e-9)
    block = (whole[12] - whole[6]) / 6
    assert count(FoldPlan(6, (6, 12))) == pytest.approx(whole[12] + 5 * block)  # only layer 0 is shared
    assert count(FoldPlan(6, (6, 12), order="cycle")) == pytest.approx(whole[12])


@pytest.mark.soak
def test_one_cycle_says_how_much_cheaper_a_fold_is() -> None:
    folds = (FOLDS[0], ("in_place, 6 and 12 alone", "in_place", (6, 12), (6, 12)))
    told = bench_one_cycle(1, folds)
    for name, _, _, depths in folds:
        together = sum(told["peer"][f"depth {depth} by itself"] for depth in depths)
        assert told["ratio"][name] == pytest.approx(together / told["ours"][name])
        assert told["ratio"][f"{name}, by counting"] > 1
