"""BatchNorm for blocks that run several times: an affine map, the same for every depth, batch and worker.

Batch statistics would mix the depths and make outputs depend on padding and on the number of workers, so the norm uses
moving statistics, as in inference. Training from scratch needs more: without the gradient through the batch's own mean,
what all frames have in common drowns what distinguishes them, and deep stacks stay on CTC's plateau. There the norm
starts with each batch's own statistics and moves over to the moving ones, always with the gradient of the former:
Batch Renormalization (Ioffe, arXiv 1702.03275), with a mixing share instead of limits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class FixedBatchNorm(nn.BatchNorm1d):
    """A BatchNorm that normalises by its moving statistics, in training too; scale and shift are trained.

    Attributes:
        context: The current pass while a model is trained from scratch; None if the statistics never change.
    """

    context: "NormContext | None" = None

    @property
    def active_statistics(self) -> nn.Module:
        """The module with the statistics of the running use.

        They are running_mean, running_var and num_batches_tracked, and while they are updated `seen_3C`: frames, sums
        and sums of squares since the last update.
        """
        return self

    def holders(self) -> "list[nn.Module]":
        """List the modules with statistics of this norm: itself, and repeated uses with private statistics."""
        return [self, *(own for own in self.modules() if own is not self and hasattr(own, "running_mean"))]

    def train(self, mode: bool = True) -> "FixedBatchNorm":  # noqa: ARG002
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, T)."""
        context, by = self.context, cast(Any, self.active_statistics)
        if context is None or context.frames_B is None:
            return nn.functional.batch_norm(
                input, by.running_mean, by.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return self._renormalise(input, by, context.share, context.weight, context.frames_B)

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
    """Turn every fixed norm back into a stock BatchNorm, in place."""
    for module in model.modules():
        if type(module) is FixedBatchNorm:
            if module.context is not None:
                del module.context, module.seen_3C
            module.__class__ = nn.BatchNorm1d  # type: ignore[assignment]


def fix_statistics(model: ModuleT) -> ModuleT:
    """Make every BatchNorm use its moving statistics in training too, in place; only a `Renorm` updates them."""
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = FixedBatchNorm
            module.eval()
    return model


def _freeze_biases_before_norms(model: nn.Module) -> None:
    """Freeze biases that a norm subtracts again: their gradient is rounding noise, which AdamW would scale up to steps
    that differ with the number of workers."""
    for module in model.modules():
        if any(isinstance(child, FixedBatchNorm) for child in module.children()):
            convolution = getattr(module, "depthwise_conv", None)
            if convolution is not None and convolution.bias is not None:
                convolution.bias.requires_grad_(False)


class NormContext:
    """Per-pass context shared by all norms of a model.

    Tensors, because torch.compile would compile numbers in.

    Attributes:
        share: Weight of the moving statistics in the normalisation, 0 to 1.
        weight: Weight of this pass's frames in the statistics.
        frames_B: Valid frames of each utterance; None outside a pass.
    """

    def __init__(self, device: torch.device) -> None:
        self.share = torch.zeros((), device=device)
        self.weight = torch.zeros((), device=device, dtype=torch.float64)
        self.frames_B: Tensor | None = None


class Renorm:
    """Updates the BatchNorm statistics of a model that is trained from scratch.

    Set `share` before each optimiser step and call `move` after it. Create it before the optimiser: biases right
    before a norm are frozen.

    Attributes:
        share: Weight of the moving statistics in the normalisation: 0 uses the batch's own, as at the start of
            training, 1 the moving ones, as in inference.

    Example:
        >>> renorm = Renorm(model, device)
        >>> renorm.share = 0.5
        >>> with renorm.observing(frames_B, weight=1.0):
        ...     loss(model(**inputs)).backward()
        >>> renorm.move()
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, FixedBatchNorm)]
        _freeze_biases_before_norms(model)
        self._context = NormContext(device)
        self._moving: list[tuple[FixedBatchNorm, Any]] = []
        for norm in self._norms:
            norm.context = self._context
            for by in norm.holders():
                by.seen_3C = torch.zeros(3, norm.num_features, device=device, dtype=torch.float64)
                self._moving.append((norm, by))

    @property
    def share(self) -> float:
        """Weight of the moving statistics in the following steps."""
        return float(self._context.share)

    @share.setter
    def share(self, share: float) -> None:
        self._context.share.fill_(share)

    @contextmanager
    def observing(self, frames_B: Tensor, weight: float) -> Iterator[None]:
        """Enclose a forward pass and its backward.

        Args:
            frames_B: Valid frames of each utterance.
            weight: Weight of these frames in the statistics; 0 ignores them.
        """
        self._context.frames_B = frames_B
        self._context.weight.fill_(weight)
        try:
            yield
        finally:
            self._context.frames_B = None

    @torch.no_grad()
    def move(self, add_up: Callable[[Tensor], object] | None = None) -> None:
        """Update all statistics after a step, by each norm's momentum, or at first by the mean of all steps so far.

        Args:
            add_up: Sums a tensor over all workers, in place; None for a single worker.
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
            has_frames = count_C[0] > 0  # a step's depths may leave a layer out
            by.num_batches_tracked += has_frames
            momentum = has_frames * by.num_batches_tracked.to(by.running_mean).reciprocal().clamp(norm.momentum, 1.0)
            mean_C = total_C / count_C.clamp(min=1)
            variance_C = squares_C / count_C.clamp(min=1) - mean_C.square()
            by.running_mean.lerp_(mean_C.to(by.running_mean), momentum)
            by.running_var.lerp_(variance_C.to(by.running_var), momentum)
