"""BatchNorm where a block runs several times: an affine map, the same for every depth, batch and worker.

Batch statistics would mix the depths and make padding and the number of workers change what a model says, so
statistics are moving ones, as at inference. Training from scratch needs more than that: without the gradient through a
batch's own mean, what all frames have in common drowns what tells them apart, and deep stacks stay on CTC's plateau. So
there the norm begins with each batch's own statistics and goes over to the moving ones, with the gradient of the
former throughout: Batch Renormalization (Ioffe, arXiv 1702.03275), by shares instead of limits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

Settled = TypeVar("Settled", bound=nn.Module)


class FixedBatchNorm(nn.BatchNorm1d):
    """A BatchNorm that normalises by its moving statistics, in training too; its scale and shift learn.

    told: while a model is trained from scratch, what its norms are told; None: the statistics never move.
    """

    told: "Told | None" = None

    @property
    def normalises_by(self) -> nn.Module:
        """The holder of the statistics: running_mean, running_var, num_batches_tracked; and, where they move, seen_3C,
        the frames, sums and sums of squares since they did."""
        return self

    def holders(self) -> "list[nn.Module]":
        """All that hold statistics of this norm: itself, and repeated uses of it that have their own."""
        return [self, *(own for own in self.modules() if own is not self and hasattr(own, "running_mean"))]

    def train(self, mode: bool = True) -> "FixedBatchNorm":  # noqa: ARG002
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T) in and out."""
        told, by = self.told, cast(Any, self.normalises_by)
        if told is None or told.frames_B is None:
            return nn.functional.batch_norm(
                input, by.running_mean, by.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return self._renormalise(input, by, told.share, told.weight, told.frames_B)

    def _renormalise(self, hidden_BCT: Tensor, by: Any, share: Tensor, weight: Tensor, frames_B: Tensor) -> Tensor:
        wide_BCT = hidden_BCT.float()
        valid_B1T = (torch.arange(hidden_BCT.shape[-1], device=frames_B.device) < frames_B[:, None])[:, None]
        count = valid_B1T.sum()
        mean_C = (wide_BCT * valid_B1T).sum((0, 2)) / count
        centred_BCT = wide_BCT - mean_C[:, None]
        variance_C = (centred_BCT.square() * valid_B1T).sum((0, 2)) / count
        deviation_C = (variance_C + self.eps).sqrt()
        with torch.no_grad():
            used_C = mean_C.lerp(by.running_mean, share)
            used_deviation_C = (variance_C.lerp(by.running_var, share) + self.eps).sqrt()
            scale_C, shift_C = deviation_C / used_deviation_C, (mean_C - used_C) / used_deviation_C
            total_C = mean_C.double() * count
            squares_C = (variance_C.double() + mean_C.double().square()) * count
            by.seen_3C.add_(weight * torch.stack([count.expand_as(total_C), total_C, squares_C]))
        normed_BCT = centred_BCT / deviation_C[:, None] * scale_C[:, None] + shift_C[:, None]
        if self.weight is not None:
            normed_BCT = normed_BCT * self.weight[:, None] + self.bias[:, None]
        return normed_BCT.to(hidden_BCT.dtype)


def make_stock(model: nn.Module) -> None:
    """Turn every norm into the stock BatchNorm that it is at inference, in place."""
    for module in model.modules():
        if type(module) is FixedBatchNorm:
            if module.told is not None:
                del module.told, module.seen_3C
            module.__class__ = nn.BatchNorm1d  # type: ignore[assignment]


def settle(model: Settled) -> Settled:
    """Let every BatchNorm normalise by its moving statistics, in place: those it was loaded with, until `Renorm`s move
    them."""
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = FixedBatchNorm
            module.eval()
    return model


def _rest_biases(model: nn.Module) -> None:
    """Stop the training of biases that a norm takes away again: their gradient is rounding alone, of which AdamW would
    make steps, other ones for another number of workers."""
    for module in model.modules():
        if any(isinstance(child, FixedBatchNorm) for child in module.children()):
            convolution = getattr(module, "depthwise_conv", None)
            if convolution is not None and convolution.bias is not None:
                convolution.bias.requires_grad_(False)


class Told:
    """What all norms of a model are told of a forward pass: how much moving statistics count, what its frames count
    for, and how many of each utterance are no padding. Tensors, which a compiled block takes as they come; numbers
    would be compiled in."""

    def __init__(self, device: torch.device) -> None:
        self.share = torch.zeros((), device=device)
        self.weight = torch.zeros((), device=device, dtype=torch.float64)
        self.frames_B: Tensor | None = None


class Renorm:
    """What moves the statistics of the BatchNorms of a model that is trained from scratch.

    share: how much the moving statistics count in the normalisation, beside the batch's own; from 0, where training
    begins, to 1, where the norm is the map that it is at inference. Set it before each step, `move` after it. Comes
    before the optimiser: biases right before a norm are not trained.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, FixedBatchNorm)]
        _rest_biases(model)
        self._told = Told(device)
        self._moving: list[tuple[FixedBatchNorm, Any]] = []
        for norm in self._norms:
            norm.told = self._told
            for by in norm.holders():
                by.seen_3C = torch.zeros(3, norm.num_features, device=device, dtype=torch.float64)
                self._moving.append((norm, by))

    @property
    def share(self) -> float:
        """How much the moving statistics count in the steps that follow."""
        return float(self._told.share)

    @share.setter
    def share(self, share: float) -> None:
        self._told.share.fill_(share)

    @contextmanager
    def listening(self, frames_B: Tensor, weight: float) -> Iterator[None]:
        """A forward pass and its backward, of so many valid frames an utterance; at weight 0 none of them counts."""
        self._told.frames_B = frames_B
        self._told.weight.fill_(weight)
        try:
            yield
        finally:
            self._told.frames_B = None

    @torch.no_grad()
    def move(self, add_up: Callable[[Tensor], object] | None = None) -> None:
        """After a step: move all statistics towards those of its frames, by the norm's momentum, or as much as in the
        mean of all steps where that is more.

        add_up: adds a tensor up over all workers, in place; None: there is but one.
        """
        if not self._norms:
            return
        seen = torch.cat([by.seen_3C.flatten() for _, by in self._moving])
        if add_up:
            add_up(seen)
        parts = seen.split([by.seen_3C.numel() for _, by in self._moving])
        for (norm, by), part in zip(self._moving, parts, strict=True):
            count_C, total_C, squares_C = part.view_as(by.seen_3C)
            by.seen_3C.zero_()
            heard = count_C[0] > 0  # a step's depths may leave a layer out
            by.num_batches_tracked += heard
            momentum = heard * by.num_batches_tracked.to(by.running_mean).reciprocal().clamp(norm.momentum, 1.0)
            mean_C = total_C / count_C.clamp(min=1)
            variance_C = squares_C / count_C.clamp(min=1) - mean_C.square()
            by.running_mean.lerp_(mean_C.to(by.running_mean), momentum)
            by.running_var.lerp_(variance_C.to(by.running_var), momentum)
