"""BatchNorm from scratch: a batch's own statistics at first, moving ones in the end; padding changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foldray.data.manifest import Manifest
from foldray.folding.batchnorm import FixedBatchNorm, Renorm, settle
from foldray.models import stack_of
from foldray.spec import OptimSpec
from foldray.training.job import Worker
from foldray.training.loop import train_model
from foldray.training.schedule import moving_share
from tests.test_training import job_for, weights

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


def renormed(share: float, frames: int = 7, weight: float = 1.0) -> tuple[Renorm, FixedBatchNorm, Tensor, Tensor]:
    """A norm at a share, its output's valid frames, and the gradient of a loss in its input's."""
    norm = settle(nn.Sequential(some_norm()))
    renorm = Renorm(norm, torch.device("cpu"))
    renorm.share.fill_(share)
    batch_BCT = some_batch(frames)
    with renorm.listening(FRAMES_B, weight):
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
    torch.testing.assert_close(tight[1].seen_3C.float(), loose[1].seen_3C.float())


def test_statistics_move_by_what_a_step_has_heard() -> None:
    renorm, norm, *_ = renormed(0.0)
    heard = [some_batch(), some_batch() * 2 + 1]
    with renorm.listening(FRAMES_B, 1.0):
        norm(heard[1])
    with renorm.listening(FRAMES_B, 0.0):  # a worker without a batch of its own
        norm(some_batch() * 100)
    frames = torch.cat([valid_frames(each) for each in heard], 2)[0].detach()
    renorm.move(lambda seen: seen.mul_(2))  # as if another worker had heard the same
    torch.testing.assert_close(norm.running_mean, frames.mean(1))
    torch.testing.assert_close(norm.running_var, frames.var(1, correction=0))
    before = norm.running_mean.clone()
    for step in range(2, 14):
        with renorm.listening(FRAMES_B, 1.0):
            norm(heard[0])
        renorm.move(lambda seen: seen)
        share = max(0.1, 1 / step)
        before = before * (1 - share) + valid_frames(heard[0])[0].mean(1) * share
        torch.testing.assert_close(norm.running_mean, before)
    renorm.move(lambda seen: seen)  # a step whose depths have left this layer out
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


def test_statistics_that_were_loaded_stay(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """From scratch they are the corpus's in the end, and every norm of every block has moved."""
    job = job_for("parakeet", prepared, tmp_path / "scratch", steps=6)
    norms = [each for each in stack_of(train_model(job, Worker()).model).modules() if isinstance(each, FixedBatchNorm)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [6, 6]
    assert all(bool((norm.running_mean.abs() > 1e-4).all()) for norm in norms)

    job = job_for("parakeet", prepared, tmp_path / "loaded", steps=6)
    model = job.spec.model.model_copy(update={"checkpoint": job.init})
    train_model(type(job)(job.spec.model_copy(update={"model": model}), job.run, job.corpus, job.init), Worker())
    trained = weights(job.run)
    means = [tensor for key, tensor in trained.items() if key.endswith("running_mean")]
    assert len(means) == 2
    assert not any(bool(mean.any()) for mean in means)
