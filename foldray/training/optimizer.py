"""The optimiser: AdamW, or Muon for the matrices of the blocks and AdamW for the rest."""

from typing import Any

import torch
from torch import Tensor, nn

from foldray.spec import OptimSpec
from foldray.training.schedule import parameter_groups

MOMENTUM = 0.95
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration, as in torch.optim.Muon."""


class Muon(torch.optim.Optimizer):
    """Muon (arXiv 2502.16982, section 2): a step equally long in all directions of a matrix, as large as AdamW's.

    Directions that few frames ask for are so learned as fast as the others. torch.optim.Muon orthogonalises in
    bfloat16, whose rounding parts two workers' weights from one's by 1e-3 in four steps; this works in float32 (3e-6),
    and takes pointwise convolutions.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
                update = orthogonalise(parameter.grad.lerp(momentum, MOMENTUM).flatten(1))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def orthogonalise(matrix_MN: Tensor) -> Tensor:
    """(M, N): the same singular vectors, singular values all near 1 (0.7 to 1.2), in float32."""
    wide_MN: Tensor = matrix_MN.float()
    high = len(wide_MN) > wide_MN.shape[1]
    wide_MN = wide_MN.transpose(0, 1) if high else wide_MN
    wide_MN = wide_MN / torch.linalg.vector_norm(wide_MN).clamp(min=1e-30)
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram_MM = wide_MN @ wide_MN.T
        wide_MN = first * wide_MN + (third * gram_MM + fifth * gram_MM @ gram_MM) @ wide_MN
    return wide_MN.transpose(0, 1) if high else wide_MN


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimisers as one, with one state: Muon moves the groups of part `matrices`, AdamW the others."""

    def __init__(self, groups: list[dict[str, Any]], optim: OptimSpec) -> None:
        matrices = [group for group in groups if group["part"] == "matrices"]
        others = [group for group in groups if group["part"] != "matrices"]
        self._each = (Muon(matrices, {"lr": optim.lr}), torch.optim.AdamW(others, lr=optim.lr, betas=optim.betas))
        # The very groups of the two, so that a rate that is set here is theirs.
        super().__init__([group for each in self._each for group in each.param_groups], {})
        for each in self._each:
            each.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step of each."""
        for each in self._each:
            each.step()


def make_optimizer(model: nn.Module, optim: OptimSpec) -> torch.optim.Optimizer:
    """The optimiser of a model that is on its device; its groups have a `part` and its `share` of the rate."""
    groups = parameter_groups(model, optim)
    if optim.kind == "muon":
        return MuonAndAdamW(groups, optim)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)
