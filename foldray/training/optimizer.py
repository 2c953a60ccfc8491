"""The optimiser: AdamW, or Muon for the matrices of the blocks and AdamW for the rest."""

from typing import Any

import torch
from torch import nn

from foldray.spec import OptimSpec
from foldray.training.schedule import parameter_groups


class MuonAndAdamW(torch.optim.Optimizer):
    """Two of torch's optimisers as one, with one state: Muon moves the groups of part `matrices`, AdamW the others.

    Muon (arXiv 2502.16982) makes every step of a matrix equally long in all directions, so that directions which few
    frames ask for are learned as fast as the others. Its rate is adjusted to the size of AdamW's steps (section 2.2).
    """

    def __init__(self, groups: list[dict[str, Any]], optim: OptimSpec) -> None:
        matrices = [group for group in groups if group["part"] == "matrices"]
        others = [group for group in groups if group["part"] != "matrices"]
        self._each = (
            torch.optim.Muon(matrices, lr=optim.lr, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=optim.lr, betas=optim.betas),
        )
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
