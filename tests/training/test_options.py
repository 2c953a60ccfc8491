"""What a spec can ask of training: strategies, parts of the model, averages, validation; and attempts that meet."""

import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import nn

from foldray import FoldPlan, fold, load_model
from foldray.config.load import override_spec
from foldray.config.spec import RunSpec
from foldray.data.manifest import Manifest
from foldray.models.families import FAMILIES, family_of
from foldray.models.fold import stack_of
from foldray.results.metrics import Record, read_metrics
from foldray.training import checkpoint, checkpointer
from foldray.training.checkpoint import read_checkpoint
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.fencing import Attempt, claim_group, claim_submission, newest_attempt
from foldray.training.final_model import finish_run
from foldray.training.job import RunStopped, TrainJob
from foldray.training.loop import TrainedModel, train_model
from foldray.training.parallel import shard
from foldray.training.run_folder import checkpoint_folders, whole_checkpoints
from foldray.training.schedule import part_of
from foldray.training.state import build_model
from foldray.training.validation import validate_checkpoint
from tests.support.tiny import CONFIGS, tiny_model
from tests.support.training import (
    assert_same,
    job_for,
    killed_at,
    spawn,
    timeless,
    weights,
    with_fields,
)


def beside(job: TrainJob, seen: list[Record] | None = None) -> LoopHooks:
    """Validation in a thread of its own, as a Ray task would be."""
    pool = ThreadPoolExecutor(1)

    def validate(step: int, uri: str) -> Future[Record]:
        return pool.submit(validate_checkpoint, job.run, step, uri, job.corpus, 12.0)

    return LoopHooks((seen if seen is not None else []).append, validate)


# --- Strategies ------------------------------------------------------------------------------------


FSDP, AGAIN = "scale.strategy=fsdp", "scale.activation_checkpointing=true"
STRATEGIES = {
    "fsdp": ("parakeet", [FSDP, "optim.ema=0.5"]),  # norms have statistics, which are not sharded
    "fsdp-idle": ("parakeet", [FSDP, "batch.per_step=1"]),
    "fsdp-private": ("wav2vec2-stable", [FSDP, "fold.private=norms+lora", "fold.lora_rank=4"]),
    "fsdp-frozen": ("wav2vec2-stable", [FSDP, "optim.freeze_front=true", "optim.ema=0.5"]),
    "fsdp-muon": ("parakeet", [FSDP, AGAIN, "optim.kind=muon", "fold.private=norms+statistics"]),
    "ddp-muon": ("parakeet", ["optim.kind=muon", AGAIN]),
    "ddp-statistics": ("parakeet", ["fold.private=norms+statistics", "optim.ema=0.5"]),
}


def assert_same_training(alone: TrainJob, together: TrainJob) -> None:
    """The same weights, moments, averages, losses and gradients in two processes as in one."""
    assert_same(weights(alone.run), weights(together.run), tolerance=2e-5)
    ours, theirs = (read_checkpoint(whole_checkpoints(job.run)[-1].uri) for job in (alone, together))
    for kind in ("optimizer", "averaged"):
        assert_same(*(dict(sorted(getattr(each, kind).items())) for each in (ours, theirs)), tolerance=2e-5)
    assert bool(ours.averaged) == bool(alone.spec.optim.ema)
    for one, other in zip(read_metrics(alone.run), read_metrics(together.run), strict=True):
        assert one["ctc"] == pytest.approx(other["ctc"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.main
def test_fsdp_and_ddp_on_two_ranks_equal_one_process_also_from_each_others_checkpoints(
    prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    alone, together = {}, {}
    for name, (family, fields) in STRATEGIES.items():
        together[name] = with_fields(job_for(family, prepared, tmp_path / name, steps=4), *fields)
        alone[name] = replace(together[name], run=f"{together[name].run}-alone")
        train_model(alone[name], WorkerContext())
    # Two sharded workers resume what one began, and one what they began.
    ones = with_fields(alone["fsdp-private"], "optim.steps=6", folder=tmp_path / "ones")
    shutil.copytree(alone["fsdp-private"].run, ones.run)
    spawn([*together.values(), ones])
    for name in STRATEGIES:
        assert_same_training(alone[name], together[name])
    twos = with_fields(together["fsdp-private"], "optim.steps=6")
    train_model(twos, WorkerContext())
    assert_same(weights(ones.run), weights(twos.run), tolerance=4e-5)
    for job in (ones, twos):
        assert [record["step"] for record in read_metrics(job.run)] == list(range(1, 7))
        assert max(path.name for path in Path(job.run, "metrics").iterdir()) == "0001-0002-00000005.jsonl"


@pytest.mark.main
@pytest.mark.parametrize("name", ["parakeet", "wav2vec2-stable"])
def test_activation_checkpointing_changes_nothing(name: str, prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    config = {"parakeet": ["model.config.dropout=0.1"], "wav2vec2-stable": ["model.config.hidden_dropout=0.1"]}[name]
    private = {"parakeet": "norms+statistics+lora", "wav2vec2-stable": "norms+lora"}[name]
    fields = [*config, f"fold.private={private}", "fold.lora_rank=4"]
    kept = with_fields(job_for(name, prepared, tmp_path / "kept", steps=3), *fields)
    again = with_fields(
        job_for(name, prepared, tmp_path / "again", steps=3), *fields, "scale.activation_checkpointing=true"
    )
    for job in (kept, again):
        train_model(job, WorkerContext())
    assert_same(weights(kept.run), weights(again.run))


@pytest.mark.soak
def test_compiled_blocks_equal_the_others(
    prepared: tuple[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as one graph a block and run as it is: the C++ that inductor makes of it takes minutes to compile."""
    compiled: list[nn.Module] = []
    compile_module = nn.Module.compile

    def capture(module: nn.Module, **how: Any) -> None:
        compiled.append(module)
        compile_module(module, backend="aot_eager", fullgraph=True, **how)

    monkeypatch.setattr(nn.Module, "compile", capture)
    jobs = []
    for name, fields in (("plain", []), ("compiled", ["scale.compile=true"])):
        # One layer in two uses: each is a graph of its own, and takes a quarter of a minute to capture.
        job = with_fields(
            job_for("parakeet", prepared, tmp_path / name, steps=2), "fold.num_layers=1", "fold.depths=[1,2]"
        )
        jobs.append(with_fields(job, "fold.private=norms+statistics+lora", "fold.lora_rank=4", *fields))
        train_model(jobs[-1], WorkerContext())
    assert_same(weights(jobs[0].run), weights(jobs[1].run), tolerance=2e-5)
    model, scale = tiny_model("parakeet"), jobs[1].spec.scale
    shard(fold(model, FoldPlan(3, (3, 6))), WorkerContext(), scale)
    assert compiled[1:] == stack_of(model).physical_layers(), "each block, once"


# --- Parts of the model ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_has_a_front_and_a_seed(name: str) -> None:
    model = tiny_model(name)
    stock = {part_of(model, key) for key, _ in model.named_parameters()}
    assert stock == {"front", "seed", "rest"}
    assert family_of(model) in FAMILIES.values()


def test_each_part_has_its_rate_and_a_frozen_front_stays(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = job_for("wav2vec2-stable", prepared, tmp_path, steps=3)
    rates = ["optim.lr_seed=0", "optim.lr_private=0.5", "optim.freeze_front=true", "optim.weight_decay=0.5"]
    job = with_fields(job, *rates, "fold.private=norms")
    before = {k: v.clone() for k, v in build_model(job, prepared[1].tokenizer)[0].named_parameters()}
    trained = train_model(job, WorkerContext())
    after = dict(trained.model.named_parameters())
    changed = {part: set() for part in ("front", "seed", "private", "rest")}
    for key, tensor in after.items():
        if not key.endswith("masked_spec_embed"):
            changed[part_of(trained.model, key)].add(not torch.equal(tensor, before[key]))
    assert changed == {"front": {False}, "seed": {False}, "private": {True}, "rest": {True}}
    record = read_metrics(job.run)[-1]
    assert (record["lr_seed"], record["lr_private"]) == (0.0, record["lr"] / 2)


# --- Averages --------------------------------------------------------------------------------------


@pytest.mark.main
def test_a_moving_average_is_the_model_and_survives_a_kill(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path / "whole", steps=7), "optim.ema=0.8")
    expected: dict[str, torch.Tensor] = {}
    plain = job_for("parakeet", prepared, tmp_path / "plain", steps=7)
    models: list[nn.Module] = []

    def follow(_: Record) -> None:
        for key, tensor in floats(models[0]).items():
            expected[key] = 0.8 * expected[key] + 0.2 * tensor

    import foldray.training.state as state

    built = build_model(plain, prepared[1].tokenizer)[0]
    expected.update({key: tensor.clone() for key, tensor in floats(built).items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "build_model", lambda *_: (models.append(built), (built, []))[1])
        train_model(plain, WorkerContext(), LoopHooks(follow))
    train_model(job, WorkerContext())
    averaged = read_checkpoint(whole_checkpoints(job.run)[-1].uri).averaged
    assert averaged.keys() == expected.keys()
    for key, tensor in averaged.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6)
    shown = load_model(whole_checkpoints(job.run)[-1].uri).state_dict()
    assert all(torch.equal(shown[key], averaged[key]) for key in averaged)
    cut = with_fields(job_for("parakeet", prepared, tmp_path / "cut", steps=7), "optim.ema=0.8")
    killed_at(cut, 5)
    train_model(cut, WorkerContext())
    assert_same(weights(job.run), weights(cut.run))


def floats(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights, and statistics of norms, which belong to them."""
    return {key: tensor for key, tensor in model.state_dict().items() if tensor.is_floating_point()}


@pytest.mark.main
def test_the_final_model_is_the_mean_of_the_last_checkpoints(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path, steps=8), "optim.average=3", "checkpoint.keep=1")
    trained = train_model(job, WorkerContext())
    found = {each.step: each.uri for each in whole_checkpoints(job.run)}
    assert list(found) == trained.final_steps == [3, 6, 8]
    finish_run(job, trained.final_steps, trained.attempt)
    states = [load_model(uri).state_dict() for uri in found.values()]
    model = load_model(f"{job.run}/model").state_dict()
    for key, tensor in model.items():
        mean = torch.stack([state[key].double() for state in states]).mean(0).to(tensor.dtype)
        torch.testing.assert_close(tensor, mean, msg=key)


# --- Validation ------------------------------------------------------------------------------------


@pytest.mark.main
def test_validation_beside_training_says_what_scoring_says_and_changes_nothing(
    prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    plain = job_for("parakeet", prepared, tmp_path / "plain", epochs=3)
    job = job_for("parakeet", prepared, tmp_path / "scored", epochs=3)
    seen: list[Record] = []
    train_model(plain, WorkerContext())
    train_model(job, WorkerContext(), beside(job, seen))
    assert_same(weights(plain.run), weights(job.run))
    scored = {record["step"]: record for record in read_metrics(job.run) if "valid_wer" in record}
    ends = [
        a["step"] for a, b in zip(timeless(job.run), timeless(job.run)[1:], strict=False) if a["epoch"] < b["epoch"]
    ]
    assert list(scored) == [*ends, timeless(job.run)[-1]["step"]]
    assert [record["step"] for record in seen if "progress" not in record] == list(scored)
    from foldray.evaluation.score import score_depths

    model = load_model(whole_checkpoints(job.run)[-1].uri)
    scores = score_depths(model, prepared[1].tokenizer, *prepared, "valid", (2, 3, 4))
    assert list(scored.values())[-1]["valid_wer"] == pytest.approx({str(s.depth): s.wer for s in scores})
    assert list(scored.values())[-1]["valid_cer"] == pytest.approx({str(s.depth): s.cer for s in scores})
    killed = job_for("parakeet", prepared, tmp_path / "killed", epochs=3)
    killed_at(killed, ends[1], beside(killed))
    train_model(killed, WorkerContext(), beside(killed))
    assert timeless(killed.run) == timeless(job.run)


@pytest.mark.main
def test_training_stops_early_and_the_best_checkpoint_is_the_model(
    prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    """The scores are made up, since a tiny model's never move; a killed run ends at the same step."""
    made_up = {2: 0.9, 4: 0.5, 6: 0.6, 8: 0.7, 10: 0.8}
    fields = ["valid.every_steps=2", "valid.patience=2", "valid.final=best", "valid.depth=3", "checkpoint.keep=1"]

    def scored(run: str, dies: bool = False) -> LoopHooks:
        def validate(step: int, _uri: str) -> Future[Record]:
            from foldray.results.metrics import VALIDATION, write_metrics

            done: Future[Record] = Future()
            record = {"step": step, "valid_wer": {"2": 0.0, "3": made_up[step], "4": 0.0}}

            def finish() -> None:
                write_metrics(run, VALIDATION, [record])
                done.set_result(record)

            if not (dies and step == 4):  # the best one is under way when its attempt dies
                finish()
            return done

        return LoopHooks(validate=validate)

    ends: list[TrainedModel] = []
    for name, kills in (("whole", ()), ("cut", (3, 5, 9))):
        job = with_fields(job_for("parakeet", prepared, tmp_path / name, steps=20), *fields)
        for step in kills:
            killed_at(job, step, scored(job.run, dies=step == 5))
        ends.append(train_model(job, WorkerContext(), scored(job.run)))
        finish_run(job, ends[-1].final_steps, ends[-1].attempt)
        # Two scores without a better one are known when the next validation is due.
        assert (ends[-1].step, ends[-1].final_steps) == (10, [4])
        assert {found.step for found in whole_checkpoints(job.run)} == {4, 10}
    assert_same(*(load_model(str(tmp_path / name / "run" / "model")).state_dict() for name in ("whole", "cut")))


@pytest.mark.main
def test_a_validation_that_never_ends_or_fails_does_not_hold_training_up(
    prepared: tuple[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foldray.training.validation.VALIDATION_SECONDS", 0.1)
    job = with_fields(job_for("parakeet", prepared, tmp_path / "scored", steps=6), "valid.every_steps=2")
    plain = job_for("parakeet", prepared, tmp_path / "plain", steps=6)

    def validate(step: int, _uri: str) -> Future[Record]:
        if step == 4:
            raise RuntimeError("no task today")
        return Future()

    train_model(job, WorkerContext(), LoopHooks(validate=validate))
    train_model(plain, WorkerContext())
    assert_same(weights(plain.run), weights(job.run))


# --- Attempts --------------------------------------------------------------------------------------


def test_of_many_who_claim_a_run_each_has_an_attempt_of_its_own(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: claim_submission(run), range(32)))
        assert sorted(each.submission for each in claimed) == list(range(1, 33))
        groups = list(pool.map(lambda _: claim_group(run, 32), range(8)))
    assert sorted(groups) == [Attempt(32, group) for group in range(1, 9)]
    with pytest.raises(RunStopped, match=r"was taken over by a newer attempt \(0032-0008, begun 20.* on .*\)"):
        claim_group(run, 31)


@pytest.mark.main
def test_an_attempt_that_wakes_up_after_a_newer_one_began_stops_and_writes_nothing(
    prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    uninterrupted = job_for("parakeet", prepared, tmp_path / "whole", steps=9)
    train_model(uninterrupted, WorkerContext())
    job = job_for("parakeet", prepared, tmp_path / "two", steps=9)
    slept, may_wake = threading.Event(), threading.Event()

    def sleep(record: Record) -> None:
        if record["step"] == 4:
            slept.set()
            assert may_wake.wait(60)

    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(train_model, job, WorkerContext(), LoopHooks(sleep))
        assert slept.wait(60)
        newer = replace(job, submission=claim_submission(job.run).submission)
        assert newer.submission == 2
        new = train_model(newer, WorkerContext())
        before = {found.uri for found in checkpoint_folders(job.run)}
        may_wake.set()
        with pytest.raises(RunStopped, match="was taken over by a newer attempt"):
            old.result(timeout=60)
    assert new.resumed_from_step == 3
    assert {found.uri for found in checkpoint_folders(job.run)} == before
    assert newest_attempt(job.run) == Attempt(2, 1)
    assert_same(weights(uninterrupted.run), weights(job.run))
    assert timeless(uninterrupted.run) == timeless(job.run)


@pytest.mark.main
def test_a_half_checkpoint_is_never_visible_and_the_next_attempt_removes_it(
    prepared: tuple[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for("parakeet", prepared, tmp_path, steps=6)
    check = checkpointer.check_newest
    calls: list[str] = []

    def fail_before_the_last_manifest(run: str, attempt: Attempt) -> None:
        calls.append(run)
        if len(calls) == 6:  # four times for each checkpoint; this is before the second one's manifest
            raise OSError("the disk is gone")
        check(run, attempt)

    monkeypatch.setattr(checkpointer, "check_newest", fail_before_the_last_manifest)
    with pytest.raises(OSError, match="the disk is gone"):
        train_model(job, WorkerContext())
    assert [found.step for found in whole_checkpoints(job.run)] == [3]
    assert [found.step for found in checkpoint_folders(job.run)] == [3, 6]
    monkeypatch.undo()
    assert train_model(job, WorkerContext()).resumed_from_step == 3
    assert [str(found.attempt) for found in checkpoint_folders(job.run)] == ["0001-0001", "0001-0002"]


@pytest.mark.main
def test_a_manifest_that_comes_after_a_newer_attempt_removed_its_files_makes_nothing_whole(
    prepared: tuple[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older attempt sleeps between its last look and its manifest; it writes that, and removes nothing after it."""
    job = with_fields(job_for("parakeet", prepared, tmp_path, steps=9), "checkpoint.keep=1")
    write_json = checkpoint.storage.write_json
    newer: list[TrainedModel] = []

    def sleep(uri: str, value: Any) -> None:
        if "step-00000006-0001-0001" in uri:
            monkeypatch.undo()
            longer = replace(job, submission=claim_submission(job.run).submission)
            newer.append(train_model(longer, WorkerContext()))
            assert not [found for found in checkpoint_folders(job.run) if found.attempt == Attempt(1, 1)]
        write_json(uri, value)

    monkeypatch.setattr(checkpoint.storage, "write_json", sleep)
    with pytest.raises(RunStopped, match="was taken over by a newer attempt"):
        train_model(job, WorkerContext())
    assert newer[0].resumed_from_step == 3
    assert [(found.step, found.attempt) for found in whole_checkpoints(job.run)] == [(9, Attempt(2, 1))]
    assert len(checkpoint_folders(job.run)) == 2, "the late manifest lies there, alone"


@pytest.mark.main
def test_an_announced_preemption_makes_a_checkpoint_at_once(
    prepared: tuple[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foldray.training.signals.ASK_SECONDS", 0.0)
    job = with_fields(job_for("parakeet", prepared, tmp_path / "told", steps=6), "checkpoint.every_steps=100")
    plain = job_for("parakeet", prepared, tmp_path / "plain", steps=6)
    seen: list[Record] = []
    whole: list[list[int]] = []

    def look(record: Record) -> None:
        seen.append(record)
        whole.append([found.step for found in whole_checkpoints(job.run)])

    around = LoopHooks(look, preemption=lambda: "node at 12:00" if len(seen) >= 3 else None)
    train_model(job, WorkerContext(), around)
    train_model(plain, WorkerContext())
    # Asked with the fourth step, answered before the fifth; the same notice is answered once.
    assert whole[:5] == [[], [], [], [4], [4]]
    assert_same(weights(plain.run), weights(job.run))


def test_an_exploding_gradient_stops_as_a_missing_one_does(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path, steps=4), "optim.stop_norm=1e-6")
    with pytest.raises(RunStopped, match=r"step 1 is [\d.e+-]+, over optim.stop_norm=1e-06; .*Lower optim.lr"):
        train_model(job, WorkerContext())
    assert not whole_checkpoints(job.run)


def test_a_spec_says_what_another_changed(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    spec: RunSpec = job_for("parakeet", prepared, tmp_path).spec
    same = override_spec(spec, ["scale.workers=[1,4]", "checkpoint.keep=9", "storage.root=/elsewhere"])
    assert spec.other_results(same) is None
    assert spec.other_results(override_spec(spec, ["optim.lr=0.5"])) == "optim.lr"
    assert spec.other_results(override_spec(spec, ["seed=3"])) == "seed"
    averaged: list[Any] = [override_spec(spec, ["optim.average=2", f"checkpoint.every_steps={n}"]) for n in (5, 6)]
    assert averaged[0].other_results(averaged[1]) == "checkpoint.every_steps"
    assert len({each.spec_hash("c", "v") for each in (spec, *averaged)}) == 3
