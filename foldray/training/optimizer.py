"""The optimizer: AdamW, or Muon for the matrices of the blocks and AdamW for the rest."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foldray.config.training import OptimSpec
from foldray.training.context import WorkerContext
from foldray.training.schedule import parameter_groups

MOMENTUM = 0.95
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
"""Newton-Schulz iteration, as in torch.optim.Muon."""


class Muon(torch.optim.Optimizer):
    """Muon (arXiv 2502.16982, section 2): updates with nearly equal singular values, as large as AdamW's.

    Directions of a matrix that few frames use are then learned nearly as fast as the others. torch.optim.Muon
    orthogonalises in bfloat16: after four steps the weights of two workers differ from one worker's by 1e-3. This one
    works in float32 (4e-6), also updates pointwise convolutions, and divides the work among the workers of DDP. With
    FSDP2 every matrix product of the iteration is distributed.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, worker: WorkerContext) -> None:
        super().__init__(groups, {"lr": lr})
        self._worker = worker

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every matrix that has a gradient."""
        moved = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        directions = self._directions([self._momentum(parameter) for parameter, _ in moved])
        for (parameter, group), direction in zip(moved, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            size = 0.2 * max(len(parameter), parameter.shape[1:].numel()) ** 0.5
            parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * size)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Update the Nesterov momentum of a parameter; return it as a matrix."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM).flatten(1)

    def _directions(self, momenta: list[Tensor]) -> list[Tensor]:
        """Orthogonalise each momentum; every worker computes some and sends them to the others."""
        rank, world = self._worker.rank, self._worker.world
        if world == 1 or any(isinstance(momentum, DTensor) for momentum in momenta):
            return [orthogonalise(momentum) for momentum in momenta]
        mine = [
            orthogonalise(momentum) if i % world == rank else torch.zeros_like(momentum)
            for i, momentum in enumerate(momenta)
        ]
        all_of_them = torch.cat([direction.flatten() for direction in mine])
        dist.all_reduce(all_of_them)  # each is a sum of one direction and zeros: exact
        parts = all_of_them.split([momentum.numel() for momentum in momenta])
        return [part.view_as(momentum) for part, momentum in zip(parts, momenta, strict=True)]


def orthogonalise(matrix_MN: Tensor) -> Tensor:
    """Return a matrix (M, N) with the same singular vectors and singular values of 0.7 to 1.2, in float32.

    Five iterations multiply a singular value by at most 485: those below a thousandth of the norm stay small.
    """
    wide_MN: Tensor = matrix_MN.float()
    high = len(wide_MN) > wide_MN.shape[1]
    wide_MN = wide_MN.transpose(0, 1) if high else wide_MN
    wide_MN = wide_MN / torch.linalg.vector_norm(wide_MN).clamp(min=1e-30)
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram_MM = wide_MN @ wide_MN.transpose(0, 1)
        both_MM = torch.addmm(gram_MM, gram_MM, gram_MM, beta=third, alpha=fifth)
        wide_MN = torch.addmm(wide_MN, both_MM, wide_MN, beta=first)
    return wide_MN.transpose(0, 1) if high else wide_MN


class Together(torch.optim.Optimizer):
    """Several optimizers as one, with a common state."""

    def __init__(self, each: list[torch.optim.Optimizer]) -> None:
        self._each = each
        # The same group objects: a learning rate that is set here is set in the optimizer.
        super().__init__([group for one in each for group in one.param_groups], {})
        for one in each:
            one.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take a step of each."""
        for one in self._each:
            one.step()


def make_optimizer(model: nn.Module, optim: OptimSpec, worker: WorkerContext) -> torch.optim.Optimizer:
    """Return the optimizer of a model that is on its device. Groups have a `part` and its `share` of the rate."""
    groups = parameter_groups(model, optim)
    matrices = [group for group in groups if group["part"] == "matrices"]
    others = [group for group in groups if group["part"] != "matrices"]
    adamw = torch.optim.AdamW(others, lr=optim.lr, betas=optim.betas)
    return Together([Muon(matrices, optim.lr, worker), adamw]) if matrices else adamw
