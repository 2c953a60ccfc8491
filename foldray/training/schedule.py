"""Schedules over the run, and parameter groups: which part of the model has which learning rate and decay."""

import math
from typing import Any

from torch import nn

from foldray.config.training import OptimSpec
from foldray.folding.private import is_private_key, is_projection
from foldray.models.families import family_of


def learning_rate(progress: float, optim: OptimSpec) -> float:
    """Return the share of the peak learning rate at `progress` (0 to 1): warm-up, hold, decay to `final_lr`."""
    if progress < optim.warmup:
        # Half a percent of the warm-up at the very first step: a rate of zero would waste it.
        return max(progress / optim.warmup, 0.005)
    begins = optim.warmup + optim.hold
    if progress <= begins or optim.schedule == "constant":
        return 1.0
    if optim.schedule == "inverse_sqrt":  # arXiv 1706.03762, section 5.3
        # The decay is relative to the warm-up; without one, to the first hundredth of the run.
        unit = max(optim.warmup, 0.01)
        return max(optim.final_lr, math.sqrt(unit / (unit + progress - begins)))
    fallen = min(1.0, (progress - begins) / (1 - begins))
    left = 0.5 * (1 + math.cos(math.pi * fallen)) if optim.schedule == "cosine" else 1 - fallen
    return optim.final_lr + (1 - optim.final_lr) * left


def moving_share(progress: float, optim: OptimSpec) -> float:
    """Return the weight of running statistics in a BatchNorm from scratch at `progress` (0 to 1)."""
    begins, ends = optim.renorm
    return float(progress >= ends) if progress < begins or progress >= ends else (progress - begins) / (ends - begins)


def parameter_groups(model: nn.Module, optim: OptimSpec) -> list[dict[str, Any]]:
    """Return the parameter groups of a model.

    Args:
        model: The folded model.
        optim: Learning rates and weight decay.

    Returns:
        Groups with `part` (front, seed, matrices, private, rest), `share` of the learning rate, and `weight_decay`
        (matrices decay; norms, biases and other vectors do not). With Muon, `matrices` are the weights of the blocks'
        linear layers and pointwise convolutions; otherwise these belong to `seed`.
    """
    shares = {"front": optim.lr_front, "seed": optim.lr_seed, "private": optim.lr_private, "rest": 1.0}
    if optim.kind == "muon":
        shares["matrices"] = optim.lr_seed * optim.lr_matrices
    groups = {
        (part, decays): {
            "params": [],
            "part": part,
            "share": share,
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for part, share in shares.items()
        for decays in (True, False)
    }
    # By name: `weight` of a module with private parts is a computed tensor.
    matrices = {f"{name}.weight" for name, module in model.named_modules() if is_projection(module)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(model, name)
            if part == "seed" and "matrices" in shares and name in matrices:
                part = "matrices"
            groups[part, parameter.ndim > 1]["params"].append(parameter)  # type: ignore[attr-defined]
    return [group for group in groups.values() if group["params"]]


def part_of(model: nn.Module, name: str) -> str:
    """Return the part of a folded model that a parameter belongs to: front, seed, private or rest."""
    family = family_of(model)
    if is_private_key(name):
        return "private"
    stacks = (f"{family.encoder}.layers.", *([f"{family.decoder}.layers."] if family.seq2seq else []))
    if name.startswith(stacks):
        return "seed"
    return "front" if name.startswith(family.front) else "rest"


def freeze_front(model: nn.Module) -> None:
    """Freeze everything before the blocks, in place."""
    for name, module in model.named_modules():
        # Otherwise wav2vec 2.0 and similar models backpropagate through the frozen convolutions to the waveform.
        if f"{name}." in family_of(model).front and hasattr(module, "_freeze_parameters"):
            module._freeze_parameters()
    for name, parameter in model.named_parameters():
        if part_of(model, name) == "front":
            parameter.requires_grad_(False)
