"""Training: two ranks == one process, resumed == uninterrupted, one step == the loss written out."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import nn

from foldray import load_model
from foldray.config.spec import RunSpec
from foldray.config.training import OptimSpec
from foldray.data.epoch import plan_epoch
from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import BatchLoader
from foldray.errors import UserError
from foldray.models.families import transformers_class
from foldray.results.metrics import read_metrics
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.final_model import finish_run
from foldray.training.job import RunStopped, TrainJob
from foldray.training.loop import train_model
from foldray.training.run_folder import whole_checkpoints
from foldray.training.schedule import learning_rate
from foldray.training.state import build_model
from tests.support.ports import free_port
from tests.support.tiny import run
from tests.support.training import (
    BY_TIER,
    MEASURED,
    TRAINED_FAMILIES,
    Killed,
    assert_same,
    job_for,
    train_rank,
    weights,
)


@pytest.mark.main
@pytest.mark.parametrize("name", BY_TIER)
def test_killed_and_resumed_is_bit_equal_to_uninterrupted(
    name: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    whole = job_for(name, prepared, tmp_path / "whole")
    trained = train_model(whole, WorkerContext())
    assert trained.step > 9
    for stop in (2, 5, trained.step - 1):

        def die(record: dict[str, Any], stop: int = stop) -> None:
            if record["step"] == stop:
                raise Killed

        with pytest.raises(Killed):
            train_model(job_for(name, prepared, tmp_path / "cut"), WorkerContext(), LoopHooks(die))
    last = job_for(name, prepared, tmp_path / "cut")
    resumed = train_model(last, WorkerContext())
    assert resumed.resumed_from_step == (trained.step - 2) // 3 * 3
    assert_same(weights(whole.run), weights(last.run))
    steps = [record["step"] for record in read_metrics(last.run)]
    assert steps == list(range(1, trained.step + 1))
    timeless = [
        [{k: v for k, v in record.items() if k not in MEASURED} for record in read_metrics(run)]
        for run in (whole.run, last.run)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.main
@pytest.mark.parametrize("length", [{"steps": 4}, {"epochs": 1}])
def test_a_run_killed_after_its_last_checkpoint_takes_no_further_step(
    length: dict[str, int], prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    job = job_for("parakeet", prepared, tmp_path, **length)
    trained = train_model(job, WorkerContext())
    again = train_model(job, WorkerContext(), LoopHooks(lambda record: pytest.fail(f"step {record['step']} ran again")))
    assert (again.step, again.resumed_from_step) == (trained.step, trained.step)
    assert_same(trained.model.state_dict(), again.model.state_dict())


def test_masks_do_not_depend_on_the_batch(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = job_for("parakeet", prepared, tmp_path)
    model = build_model(job, prepared[1].tokenizer)[0]
    index = read_index(*prepared, "train")
    loader = BatchLoader(index, model, prepared[1].tokenizer, job.spec.augment, 0)
    order = np.argsort(index.num_samples)
    alone = loader.load(order[:1], epoch=0).inputs
    padded = loader.load(order[[0, -1]], epoch=0).inputs
    frames = int(alone["attention_mask"].sum())
    assert frames < padded["input_features"].shape[1]
    ours, theirs = alone["input_features"][0, :frames], padded["input_features"][0, :frames]
    assert torch.equal(ours == 0, theirs == 0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # the transform itself rounds by batch shape
    clean = BatchLoader(index, model, prepared[1].tokenizer, None, 0).load(order[:1], epoch=0).inputs
    assert not torch.equal(alone["input_features"], clean["input_features"])


def test_masks_longer_than_an_utterance_are_refused(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = job_for("wav2vec2-stable", prepared, tmp_path)
    config = {**job.spec.model.config, "mask_time_length": 500}
    spec = job.spec.model_copy(update={"model": job.spec.model.model_copy(update={"config": config})})
    with pytest.raises(UserError, match=r"model.config.mask_time_length: 500 frames are more than the shortest"):
        train_model(replace(job, spec=spec), WorkerContext())


@pytest.mark.main
def test_two_ranks_equal_one_process(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """Steps of three micro-batches (two and one), and of one, where the second rank is idle and must change nothing."""
    cases = [
        (name, per_step) for name, per_step in zip([*TRAINED_FAMILIES, "parakeet"], [3, 3, 3, 3, 3, 1], strict=True)
    ]
    pairs = []
    for name, per_step in [*cases, ("wav2vec2-stable", 2)]:
        folder = tmp_path / f"{name}-{per_step}"
        alone, together = (
            job_for(name, prepared, folder / part, steps=4, per_step=per_step) for part in ("one", "two")
        )
        if per_step == 2:  # parts that only a depth between has, which some steps do not draw
            alone, together = (replace(job, spec=_with_parts_between(job.spec)) for job in (alone, together))
        train_model(alone, WorkerContext())
        pairs.append((alone, together))
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.multiprocessing.spawn(train_rank, args=([job for _, job in pairs], 2, address), nprocs=2)
    for alone, together in pairs:
        assert_same(weights(alone.run), weights(together.run), tolerance=2e-5)
        for one, other in zip(read_metrics(alone.run), read_metrics(together.run), strict=True):
            assert one["ctc"] == pytest.approx(other["ctc"], rel=1e-4)
            assert one.get("attention", {}) == pytest.approx(other.get("attention", {}), rel=1e-4)
            assert one["kl"] == pytest.approx(other["kl"], rel=1e-3, abs=1e-7)
            assert one["audio_seconds"] == other["audio_seconds"]


def _with_parts_between(spec: RunSpec) -> RunSpec:
    paths = ((0, 1), (0, 0, 1), (0, 1, 1, 1), (0, 1, 0, 0, 0))  # the deepest has layer 1 once, the third three times
    fold = {"depths": (2, 3, 4, 5), "paths": paths, "private": "norms+lora", "lora_rank": 4}
    loss = {"sampled": 1, "hidden": 0.1, "beta_warmup": 0.5}
    return spec.model_copy(
        update={"fold": spec.fold.model_copy(update=fold), "loss": spec.loss.model_copy(update=loss)}
    )


@pytest.mark.soak
def test_three_ranks_killed_and_resumed_are_bit_equal(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """The sum of three depends on its order, and so on how gradients lie in what the ranks exchange."""
    whole, cut = (job_for("parakeet", prepared, tmp_path / part, steps=8) for part in ("whole", "cut"))
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.multiprocessing.spawn(_kill_rank, args=(whole, cut, 3, address), nprocs=3)
    assert_same(weights(whole.run), weights(cut.run))


def _kill_rank(rank: int, whole: TrainJob, cut: TrainJob, world: int, address: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)

    def die(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise Killed

    train_model(whole, WorkerContext(rank, world))
    with contextlib.suppress(Killed):
        train_model(cut, WorkerContext(rank, world), LoopHooks(die))
    assert train_model(cut, WorkerContext(rank, world)).resumed_from_step == 3
    torch.distributed.destroy_process_group()


@pytest.mark.main
@pytest.mark.parametrize("name", BY_TIER)
def test_the_finished_model_is_the_trained_one_and_opens_in_stock_transformers(
    name: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    job = job_for(name, prepared, tmp_path, steps=2)
    trained = train_model(job, WorkerContext())
    finish_run(job, trained.final_steps, trained.attempt)
    model = load_model(f"{job.run}/model")
    trained.model.eval()
    index = read_index(*prepared, "test")
    batch = BatchLoader(index, model, prepared[1].tokenizer, None, 0).load(
        plan_epoch(index, seed=0, epoch=0, max_duration=20, per_step=1).batch(0), 0
    )
    stock, report = transformers_class(type(model).__name__).from_pretrained(
        f"{job.run}/model", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits_PBTV = run(model, batch.inputs).unflatten(0, (3, -1))
        assert torch.equal(logits_PBTV, run(trained.model, batch.inputs).unflatten(0, (3, -1)))
        assert torch.equal(logits_PBTV[0], run(stock.eval(), batch.inputs))
        assert torch.equal(logits_PBTV[2], run(load_model(f"{job.run}/model", depth=4), batch.inputs))
        newest = load_model(whole_checkpoints(job.run)[-1].uri)
        assert torch.equal(logits_PBTV, run(newest, batch.inputs).unflatten(0, (3, -1)))
    with pytest.raises(UserError, match=r"depth 1 is shallower than the seed, 2 \(trained: 2, 3, 4\)"):
        load_model(f"{job.run}/model", depth=1)


@pytest.mark.main
def test_batches_are_the_same_whoever_loads_them(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = job_for("parakeet", prepared, tmp_path)
    model = build_model(job, prepared[1].tokenizer)[0]
    index = read_index(*prepared, "train")
    loaders = [BatchLoader(index, model, prepared[1].tokenizer, job.spec.augment, 0) for _ in range(2)]
    batches = list(plan_epoch(index, seed=0, epoch=0, max_duration=12, per_step=1).share(0, 1))
    ahead = list(loaders[0].ahead(batches, epoch=0))
    for batch, planned in zip(ahead, batches, strict=True):
        again = loaders[1].load(planned, epoch=0)
        assert batch.ids == again.ids == [index.ids[int(i)].as_py() for i in planned]
        assert torch.equal(batch.inputs["input_features"], again.inputs["input_features"])
    other_epoch = loaders[1].load(batches[0], epoch=1)
    assert not torch.equal(ahead[0].inputs["input_features"], other_epoch.inputs["input_features"])


@pytest.mark.main
def test_a_gradient_that_is_not_finite_stops_before_the_update_and_names_the_utterances(
    prepared: tuple[str, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for("parakeet", prepared, tmp_path, steps=8)

    def poison(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))

    with pytest.raises(RunStopped, match=r"the gradient of step 5 is not finite; the \d+ utterances of its batch"):
        train_model(job, WorkerContext(), LoopHooks(poison))
    facts = json.loads((Path(job.run) / "exploded" / "step-00000005.json").read_text())
    assert facts["step"] == 5
    assert facts["ids"]
    assert all(i.startswith("train-") for i in facts["ids"])
    assert [record["step"] for record in read_metrics(job.run)] == [1, 2, 3, 4]
    assert [found.step for found in whole_checkpoints(job.run)] == [3]


@pytest.mark.main
def test_a_damaged_checkpoint_is_named_and_a_half_written_one_is_not_seen(
    prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    job = job_for("parakeet", prepared, tmp_path, steps=6)
    train_model(job, WorkerContext())
    newest = Path(whole_checkpoints(job.run)[-1].uri)
    (newest / "manifest.json").rename(newest / "later")
    assert [found.step for found in whole_checkpoints(job.run)] == [3]
    (newest / "later").rename(newest / "manifest.json")
    whole = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(whole[:-1])
    assert [found.step for found in whole_checkpoints(job.run)] == [3], "a file that is cut off"
    manifest = (newest / "manifest.json").read_bytes()
    for content in (b"", b"{", b"[]", b'{"model.safetensors": 3}'):
        (newest / "manifest.json").write_bytes(content)
        assert [found.step for found in whole_checkpoints(job.run)] == [3], "a manifest that is cut off"
    (newest / "manifest.json").write_bytes(manifest)
    (newest / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"step-00000006-0001-0001/model.safetensors: is damaged"):
        train_model(job, WorkerContext())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt", "constant"])
@pytest.mark.parametrize("hold", [0.0, 0.4])
def test_the_learning_rate_rises_holds_and_falls(schedule: Any, hold: float) -> None:
    optim = OptimSpec(steps=1, warmup=0.1, hold=hold, schedule=schedule, final_lr=0.02)
    rates = [learning_rate(p / 100, optim) for p in range(101)]
    assert rates[0] == 0.005
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10 : 11 + int(100 * hold)] == [rates[10]] * (1 + int(100 * hold))
    middle, end = rates[55 + int(50 * hold)], rates[100]  # half of the decay, and all of it
    expected = {
        "cosine": (0.51, 0.02),
        "linear": (0.51, 0.02),
        "inverse_sqrt": (0.1 / (0.55 - hold / 2)) ** 0.5,
        "constant": (1.0, 1.0),
    }[schedule]
    if schedule == "inverse_sqrt":
        expected = (expected, (0.1 / (1 - hold)) ** 0.5)
    assert (middle, end) == pytest.approx(expected)
