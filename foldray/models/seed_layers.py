"""Seeds from deeper models: which layers become the physical ones, and initial values of private parts."""

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from foldray.folding.plan import FoldPlan
from foldray.folding.private import PrivateModule, is_projection
from foldray.folding.stack import FoldedStack

Method = Literal["stepwise", "first", "average", "svd"]
LayerUse = tuple[int, int]
"""A physical layer and the number of one of its uses."""


def seed_layers(available: int, num_layers: int, method: Literal["stepwise", "first"]) -> list[int]:
    """Choose the indices of `num_layers` layers out of `available`.

    `stepwise` takes evenly spaced layers including the first and the last (best for strictly tied
    layers in arXiv 2410.20672, section 3); `first` takes the lowest.
    """
    if num_layers > available:
        raise ValueError(f"the seed is made from {available} layers, the fold needs {num_layers}")
    if method == "first" or num_layers == 1:
        return list(range(num_layers))
    return [round(i * (available - 1) / (num_layers - 1)) for i in range(num_layers)]


def sources_of(plan: FoldPlan, available: int) -> dict[LayerUse, int]:
    """Map each (layer, use) to the layer it replaces in a model of `available` layers: the one at its path position.

    Raises ValueError if the plan has no path of that depth.
    """
    try:
        path = plan.path(available)
    except KeyError as error:
        raise ValueError(f"the seed is made from {available} layers: {error.args[0]}") from None
    return {(layer, path[:i].count(layer)): i for i, layer in enumerate(path)}


def check_seed(available: int, plan: FoldPlan, method: Method) -> None:
    """Raise ValueError if a method can't compute the seed of a plan from so many layers."""
    if method not in get_args(Method):
        raise ValueError(f"'{method}' must be one of {', '.join(get_args(Method))}")
    seed_layers(available, plan.num_layers, "first")
    if method == "svd" and not plan.private.lora_rank:
        raise ValueError("svd stores the residual of the average in private low-rank parts; add lora to private")
    if method in ("average", "svd"):
        used = {layer for layer, _ in sources_of(plan, available)}
        if missing := set(range(plan.num_layers)) - used:
            raise ValueError(
                f"layer {min(missing)} replaces no layer of the checkpoint: the path of its depth leaves it out"
            )


def seed_blocks(sources: Sequence[nn.Module], plan: FoldPlan, method: Method) -> list[nn.Module]:
    """Compute the physical layers from those of a deeper model.

    `average` and `svd` compute the mean of the layers that each one replaces on the path of the
    checkpoint's depth (arXiv 2410.20672, section 2.2). Raises ValueError for too few layers, a missing
    path, or, for `svd`, missing low-rank parts.
    """
    check_seed(len(sources), plan, method)
    if method == "stepwise" or method == "first":
        return [sources[i] for i in seed_layers(len(sources), plan.num_layers, method)]
    members = sources_of(plan, len(sources))
    return [
        _average([sources[i] for (owner, _), i in members.items() if owner == layer])
        for layer in range(plan.num_layers)
    ]


@torch.no_grad()
def _average(blocks: Sequence[nn.Module]) -> nn.Module:
    mean = copy.deepcopy(blocks[0])
    states = [block.state_dict() for block in blocks]
    for key, tensor in mean.state_dict().items():
        if tensor.is_floating_point():
            # WavLM's position table is in the first block only.
            tensor.copy_(torch.stack([state[key] for state in states if key in state]).mean(0))
    return mean


@torch.no_grad()
def fit_private(stack: FoldedStack, sources: Sequence[nn.Module]) -> None:
    """Initialise each use's private parts with the difference between the shared layer and the layer it replaces.

    Low-rank terms become the truncated singular value decomposition of the difference, the best of
    their rank in the Frobenius norm (arXiv 2410.20672, section 2.2); norms are copied.
    """
    blocks = stack.physical_layers()
    for (layer, use), source in sources_of(stack.plan, len(sources)).items():
        for path, module in blocks[layer].named_modules():
            if use and isinstance(module, PrivateModule) and str(use) in module.private:
                _fit(module, use, sources[source].get_submodule(path))


def _fit(module: PrivateModule, use: int, source: nn.Module) -> None:
    for name, statistic in module.private[str(use)].named_buffers():
        statistic.copy_(source.get_buffer(name))
    parts = module.private[str(use)]._parameters
    for name in ("weight", "bias"):
        if name in parts:
            parts[name].copy_(source.get_parameter(name))  # type: ignore[union-attr]
    if "lora_a" in parts and is_projection(source):
        stock, wanted = module._parameters["weight"], source.get_parameter("weight")
        assert stock is not None
        b, a = low_rank((wanted - stock).flatten(1), len(parts["lora_a"]))  # type: ignore[arg-type]
        parts["lora_a"].copy_(a)  # type: ignore[union-attr]
        parts["lora_b"].copy_(b)  # type: ignore[union-attr]


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factor a matrix into (outputs, rank) and (rank, inputs), its best approximation of that rank."""
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
