"""BatchNorm from scratch: a batch's own statistics at first, moving ones in the end; padding changes nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from foldray import FoldPlan, fold, load_model, save_model, unroll
from foldray.config.model import ModelSpec
from foldray.config.recipes import load_recipe
from foldray.config.training import OptimSpec
from foldray.data.manifest import Manifest
from foldray.errors import UserError
from foldray.folding.batchnorm import FixedBatchNorm, Renorm, fix_statistics
from foldray.folding.plan import Private
from foldray.models.count_model import count_parameters
from foldray.models.fold import stack_of
from foldray.models.from_checkpoint import load_folded
from foldray.models.stock import write_random_checkpoint
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.job import TrainJob
from foldray.training.loop import TrainedModel, train_model
from foldray.training.run_folder import whole_checkpoints
from foldray.training.schedule import moving_share
from tests.support.tiny import TOKENIZER, inputs_for, noise, run, tiny_model
from tests.support.training import assert_same, job_for, weights

FRAMES_B = torch.tensor([7, 3, 5])


def some_norm() -> nn.BatchNorm1d:
    """A norm that has been trained."""
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return norm


def some_batch(frames: int = 7) -> Tensor:
    """Utterances with far-off padding."""
    torch.manual_seed(0)
    batch_BCT = torch.full((3, 4, frames), 50.0)
    for each_CT, count in zip(batch_BCT, FRAMES_B.tolist(), strict=True):
        each_CT[:, :count] = torch.randn(4, count) * 3 + torch.arange(4)[:, None]
    return batch_BCT.requires_grad_()


def valid_frames(batch_BCT: Tensor) -> Tensor:
    """All frames but padding, (1, C, N)."""
    return torch.cat([each[:, :count] for each, count in zip(batch_BCT, FRAMES_B.tolist(), strict=True)], 1)[None]


def renormed(share: float, frames: int = 7) -> tuple[Renorm, FixedBatchNorm, Tensor, Tensor]:
    """A norm at a share, its output's valid frames, and the gradient of a loss in its input's."""
    norm = fix_statistics(nn.Sequential(some_norm()))
    renorm = Renorm(norm, torch.device("cpu"))
    renorm.share = share
    batch_BCT = some_batch(frames)
    with renorm.observing(FRAMES_B, 1.0):
        output_1CN = valid_frames(norm(batch_BCT))
        (output_1CN * torch.arange(output_1CN.numel()).view_as(output_1CN).sin()).sum().backward()
    assert batch_BCT.grad is not None
    return renorm, norm[0], output_1CN, valid_frames(batch_BCT.grad)


def test_at_first_it_is_batchnorm_over_the_valid_frames() -> None:
    _, _, ours, our_gradient = renormed(0.0)
    stock = some_norm().train()
    frames = valid_frames(some_batch()).detach().requires_grad_()
    theirs = stock(frames)
    (theirs * torch.arange(theirs.numel()).view_as(theirs).sin()).sum().backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_gradient, frames.grad)


def test_in_the_end_it_is_the_map_of_inference_with_the_gradient_of_batchnorm() -> None:
    _, norm, ours, gradient = renormed(1.0)
    torch.testing.assert_close(ours, valid_frames(some_norm().eval()(some_batch())))
    torch.testing.assert_close(ours, valid_frames(norm(some_batch())), msg="outside of training it is nothing else")
    # What all frames have in common has no gradient; with moving statistics alone it would be most of it.
    torch.testing.assert_close(gradient.sum(2), torch.zeros(1, 4), rtol=0, atol=1e-5)
    _, _, _, early = renormed(0.0)
    ratio = gradient / early
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_padding_counts_for_nothing(share: float) -> None:
    tight, loose = renormed(share), renormed(share, frames=21)
    for ours, theirs in zip(tight[2:], loose[2:], strict=True):
        torch.testing.assert_close(ours, theirs)
    ours, theirs = (each[1].active_statistics.seen_3C.float() for each in (tight, loose))
    torch.testing.assert_close(ours, theirs)


def test_statistics_move_by_what_a_step_has_heard() -> None:
    renorm, norm, *_ = renormed(0.0)
    heard = [some_batch(), some_batch() * 2 + 1]
    with renorm.observing(FRAMES_B, 1.0):
        norm(heard[1])
    with renorm.observing(FRAMES_B, 0.0):  # a worker without a batch of its own
        norm(some_batch() * 100)
    frames = torch.cat([*(valid_frames(each) for each in heard), torch.tensor([[1.0, 3.0]]).expand(1, 4, 2)], 2)[
        0
    ].detach()
    # Another worker has heard two frames, of 1 and of 3.
    renorm.move(lambda seen: seen.add_(torch.tensor([2.0, 4.0, 10.0]).repeat_interleave(4)))
    torch.testing.assert_close(norm.running_mean, frames.mean(1))
    torch.testing.assert_close(norm.running_var, frames.var(1, correction=0))
    before = norm.running_mean.clone()
    for step in range(2, 14):
        with renorm.observing(FRAMES_B, 1.0):
            norm(heard[0])
        renorm.move()
        share = max(0.1, 1 / step)
        before = before * (1 - share) + valid_frames(heard[0])[0].mean(1) * share
        torch.testing.assert_close(norm.running_mean, before)
    renorm.move()  # a step whose depths have left this layer out
    torch.testing.assert_close(norm.running_mean, before)
    assert int(norm.num_batches_tracked) == 13


def test_shares_follow_the_run() -> None:
    shares = [moving_share(at, OptimSpec(steps=1)) for at in (0.0, 0.1, 0.2, 0.3, 1.0)]
    assert shares == pytest.approx([0, 0, 0.5, 1, 1])
    assert moving_share(0.0, OptimSpec(steps=1, renorm=(0.0, 0.0))) == 1.0
    assert moving_share(0.5, OptimSpec(steps=1, renorm=(0.5, 0.5))) == 1.0
    for wrong in ((0.3, 0.1), (-0.1, 0.2), (0.5, 1.5)):
        with pytest.raises(ValueError, match="the smaller first"):
            OptimSpec(steps=1, renorm=wrong)


@pytest.mark.main
def test_statistics_that_were_loaded_stay(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """From scratch they are the corpus's in the end, and every norm of every block has moved."""
    job = job_for("parakeet", prepared, tmp_path / "scratch", steps=6)
    norms = [
        each for each in stack_of(train_model(job, WorkerContext()).model).modules() if isinstance(each, FixedBatchNorm)
    ]
    assert [int(norm.num_batches_tracked) for norm in norms] == [6, 6]
    assert all(bool((norm.running_mean.abs() > 1e-4).all()) for norm in norms)

    job = job_for("parakeet", prepared, tmp_path / "loaded", steps=6)
    model = job.spec.model.model_copy(update={"checkpoint": job.init})
    train_model(type(job)(job.spec.model_copy(update={"model": model}), job.run, job.corpus, job.init), WorkerContext())
    trained = weights(job.run)
    means = [tensor for key, tensor in trained.items() if key.endswith("running_mean")]
    assert len(means) == 2
    assert not any(bool(mean.any()) for mean in means)


def trained_with(
    prepared: tuple[str, Manifest], folder: Path, renorm: tuple[float, float], **optim: Any
) -> TrainedModel:
    return train_model(job_for("parakeet", prepared, folder, steps=6, renorm=renorm, **optim), WorkerContext())


def norms_of(model: nn.Module) -> list[FixedBatchNorm]:
    return [module for module in model.modules() if isinstance(module, FixedBatchNorm)]


@pytest.mark.main
def test_training_goes_over_from_one_to_the_other(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """The share is the spec's, step by step; biases that a norm takes away stay as they were."""
    ways = {
        renorm: trained_with(prepared, tmp_path / str(i), renorm).model
        for i, renorm in enumerate([(0.0, 0.0), (1.0, 1.0), (0.1, 0.3)])
    }
    shares = [norms_of(model)[0].context.share.item() for model in ways.values()]
    assert shares == [1.0, 0.0, 1.0]
    moving, own, _ = (model.state_dict() for model in ways.values())
    key = "encoder.layers.0.conv.pointwise_conv1.weight"
    assert not torch.equal(moving[key], own[key])
    first = load_file(tmp_path / "0" / "init" / "model.safetensors")
    rested = [key for key in first if key.endswith("depthwise_conv.bias")]
    assert len(rested) == 2
    assert all(torch.equal(first[key], moving[key]) for key in rested)


def test_in_the_end_training_sees_what_inference_sees(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """With moving statistics alone, the losses of a step are those of the same weights in evaluation."""
    job = job_for("parakeet", prepared, tmp_path, steps=6, renorm=(0.0, 0.0))
    model = train_model(job, WorkerContext()).model
    context = norms_of(model)[0].context
    features = torch.randn(2, 200, 40, generator=torch.Generator().manual_seed(0))
    inputs = {"input_features": features, "attention_mask": torch.ones(2, 200, dtype=torch.long)}
    model.eval()
    with torch.no_grad():
        said = model(**inputs).logits
    context.frames_B = torch.tensor([50, 50])
    torch.testing.assert_close(model(**inputs).logits, said, rtol=1e-4, atol=1e-5)
    stock = unroll(model, 4)
    assert not any(hasattr(module, "context") for module in stock.modules())


@pytest.mark.main
def test_averaged_weights_come_with_averaged_statistics(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """Statistics belong to weights: those of a moving average move with it, and a resumed one goes on with its own."""
    whole = job_for("parakeet", prepared, tmp_path / "whole", steps=6, ema=0.5)
    train_model(whole, WorkerContext())
    newest = Path(whole_checkpoints(whole.run)[-1].uri)
    averaged, raw = load_file(newest / "model.safetensors"), load_file(newest / "trained.safetensors")
    means = [key for key in averaged if key.endswith("running_mean")]
    assert len(means) == 2
    assert not any(torch.equal(averaged[key], raw[key]) for key in means)
    before = Path(whole_checkpoints(whole.run)[-2].uri)  # three steps earlier
    shutil.rmtree(newest)
    train_model(whole, WorkerContext())
    again = Path(whole_checkpoints(whole.run)[-1].uri)
    assert before.exists()
    resumed = load_file(again / "model.safetensors")
    assert all(torch.equal(resumed[key], averaged[key]) for key in averaged)


# --- Statistics of each use -----------------------------------------------------------------------

NORMED = ("parakeet", "conformer", "wav2vec2-conformer", "wav2vec2-conformer-rotary")


@pytest.mark.parametrize("name", NORMED)
def test_each_use_normalises_by_its_own_statistics(name: str, tmp_path: Path) -> None:
    """Fresh ones change nothing; others do, and are what the unrolled model and the saved one compute with."""
    inputs_of = lambda model: inputs_for(model, [noise(0.8), noise(0.5, seed=1)])  # noqa: E731
    plain = fold(tiny_model(name), FoldPlan(3, (3, 6, 8), order="cycle"))
    own = fold(tiny_model(name), FoldPlan(3, (3, 6, 8), order="cycle", private=Private(statistics=True)))
    assert count_parameters(own) == count_parameters(plain)
    with torch.no_grad():
        shared_PBTV = run(plain, inputs_of(plain)).unflatten(0, (3, 2))
        assert torch.equal(run(own, inputs_of(own)).unflatten(0, (3, 2)), shared_PBTV)
        for i, (key, buffer) in enumerate(own.named_buffers()):
            if ".private." in key and "running" in key:
                buffer.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(i))
        said_PBTV = run(own, inputs_of(own)).unflatten(0, (3, 2))
        assert torch.equal(said_PBTV[0], shared_PBTV[0])
        assert not torch.equal(said_PBTV[1], shared_PBTV[1])
        save_model(own, tmp_path)
        for model in (own, load_model(tmp_path)):
            for path, depth in enumerate((3, 6, 8)):
                assert torch.equal(run(unroll(model, depth), inputs_of(own)), said_PBTV[path])
    moved = {key.split("layers.")[1][0] + key.split("private.")[1][0] for key in own.state_dict() if "private" in key}
    assert moved == {"01", "02", "11", "12", "21"}


Inputs = dict[int, list[tuple[str, Tensor]]]
"""By norm: the use and the valid frames of every forward pass of a step."""


def train_and_record_inputs(job: TrainJob) -> tuple[Any, list[Inputs]]:
    """The trained model, and for each step what its norms were given."""
    inputs_of: Inputs = {}
    steps: list[Inputs] = []

    def listen(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        context = norm.context if isinstance(norm, FixedBatchNorm) else None
        if context is not None and context.frames_B is not None and context.weight:
            frames = [
                each[:, :count] for each, count in zip(inputs[0].detach(), context.frames_B.tolist(), strict=True)
            ]
            inputs_of.setdefault(id(norm), []).append((norm.running.number, torch.cat(frames, 1)))  # type: ignore

    def after_step(record: dict[str, Any]) -> None:
        if "progress" in record:
            steps.append(dict(inputs_of))
            inputs_of.clear()

    handle = nn.modules.module.register_module_forward_pre_hook(listen)
    try:
        return train_model(job, WorkerContext(), LoopHooks(after_step)).model, steps
    finally:
        handle.remove()


def test_statistics_become_those_of_what_each_use_hears(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """At the end of training those of the deepest path are a running mean over the very inputs of the norms."""
    job = job_for("parakeet", prepared, tmp_path, steps=5)
    fold = job.spec.fold.model_copy(update={"private": "statistics", "depths": (2, 4), "order": "cycle"})
    job = replace(job, spec=job.spec.model_copy(update={"fold": fold}))
    model, steps = train_and_record_inputs(job)
    assert len(steps) == 5
    for norm in norms_of(model):
        for use, holder in enumerate(norm.holders()):
            mean = torch.zeros(norm.num_features)
            for number, step in enumerate(steps, 1):
                frames = torch.cat([each for at, each in step[id(norm)] if at == str(use)], 1)
                mean = mean.lerp(frames.mean(1), max(0.1, 1 / number))
            torch.testing.assert_close(holder.running_mean, mean, rtol=1e-4, atol=1e-5)
    seed, first_again = (each.running_mean for each in norms_of(model)[0].holders())
    assert not torch.allclose(seed, first_again, atol=1e-3)


@pytest.mark.main
def test_private_statistics_survive_a_kill(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    whole, cut = (job_for("parakeet", prepared, tmp_path / part, steps=6) for part in ("whole", "cut"))
    fold = whole.spec.fold.model_copy(update={"private": "norms+statistics"})
    whole, cut = (replace(job, spec=job.spec.model_copy(update={"fold": fold})) for job in (whole, cut))
    train_model(whole, WorkerContext())
    with pytest.raises(ZeroDivisionError):
        train_model(cut, WorkerContext(), LoopHooks(lambda record: record["step"] // (record["step"] < 5)))
    train_model(cut, WorkerContext())
    assert_same(weights(cut.run), weights(whole.run))
    assert any("private" in key and key.endswith("running_var") for key in weights(whole.run))


def test_a_deeper_checkpoints_statistics_become_those_of_the_uses(tmp_path: Path) -> None:
    stock = tiny_model("parakeet", 6)
    for number, norm in enumerate(each for each in stock.modules() if isinstance(each, nn.BatchNorm1d)):
        norm.running_mean.fill_(number)
    stock.save_pretrained(tmp_path)
    plan = FoldPlan(3, (3, 6), private=Private(statistics=True, lora_rank=2))
    model, *_ = load_folded(
        ModelSpec(family="parakeet", checkpoint=str(tmp_path), seed_layers="svd"), str(tmp_path), plan, TOKENIZER, 0
    )
    assert [[float(by.running_mean[0]) for by in norm.holders()] for norm in norms_of(model)] == [
        [0.5, 1], [2.5, 3], [4.5, 5],
    ]  # fmt: skip


def test_folds_of_before_there_were_private_statistics_open(tmp_path: Path) -> None:
    save_model(fold(tiny_model("parakeet"), FoldPlan(3, (3, 6), private=Private(norms=True))), tmp_path)
    said = json.loads((tmp_path / "fold.json").read_text())
    assert said["private"].pop("statistics") is False
    (tmp_path / "fold.json").write_text(json.dumps(said))
    assert stack_of(load_model(tmp_path)).plan.private == Private(norms=True)


def test_statistics_that_would_never_move_are_refused() -> None:
    with pytest.raises(UserError, match=r"fold.private: statistics of a checkpoint never change"):
        load_recipe("an4", ["model.checkpoint=./x", "fold.private=statistics"])


def test_statistics_need_a_batchnorm() -> None:
    with pytest.raises(ValueError, match="private: 'statistics' needs a BatchNorm, and this model's blocks have none"):
        fold(tiny_model("wav2vec2"), FoldPlan(3, (3, 6), private=Private(norms=True, statistics=True)))


def test_adapters_go_with_pretrained_weights_only(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = job_for("wav2vec2-conformer", prepared, tmp_path, steps=1)
    config = {**job.spec.model.config, "add_adapter": True}
    spec = job.spec.model_copy(update={"model": job.spec.model.model_copy(update={"config": config})})
    write_random_checkpoint(spec.model, 2, prepared[1].tokenizer, 0, tmp_path / "adapted")
    with pytest.raises(UserError, match=r"model.config.add_adapter: needs pretrained weights"):
        train_model(TrainJob(spec, job.run, job.corpus, str(tmp_path / "adapted")), WorkerContext())
