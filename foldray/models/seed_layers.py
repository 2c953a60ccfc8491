"""Seeds from deeper models: which layers of a checkpoint become the physical ones, and what private parts begin as."""

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
"""A physical layer and a use of it."""


def seed_layers(available: int, num_layers: int, method: Literal["stepwise", "first"]) -> list[int]:
    """Indices of the `num_layers` layers to take of `available`.

    `stepwise` takes evenly spaced layers, the first and the last among them (best for strictly tied
    layers in arXiv 2410.20672, section 3); `first` takes the lowest.
    """
    if num_layers > available:
        raise ValueError(f"the checkpoint has {available} layers, the fold wants {num_layers}")
    if method == "first" or num_layers == 1:
        return list(range(num_layers))
    return [round(i * (available - 1) / (num_layers - 1)) for i in range(num_layers)]


def sources_of(plan: FoldPlan, available: int) -> dict[LayerUse, int]:
    """Which layer of a model with `available` layers each (layer, use) stands for: the one at its place on the path.

    Raises ValueError where the plan has no path of that depth.
    """
    try:
        path = plan.path(available)
    except KeyError as error:
        raise ValueError(f"the checkpoint has {available} layers: {error.args[0]}") from None
    return {(layer, path[:i].count(layer)): i for i, layer in enumerate(path)}


def check_seed(available: int, plan: FoldPlan, method: Method) -> None:
    """Raise ValueError if a method can't make the seed of a plan out of so many layers."""
    if method not in get_args(Method):
        raise ValueError(f"'{method}' is no way to make a seed; use one of {', '.join(get_args(Method))}")
    seed_layers(available, plan.num_layers, "first")
    if method == "svd" and not plan.private.lora_rank:
        raise ValueError("svd puts what the average leaves out into private low-rank parts; add lora to them")
    if method in ("average", "svd"):
        stood_for = {layer for layer, _ in sources_of(plan, available)}
        if missing := set(range(plan.num_layers)) - stood_for:
            raise ValueError(f"layer {min(missing)} stands for no layer of the checkpoint: its path leaves it out")


def seed_blocks(sources: Sequence[nn.Module], plan: FoldPlan, method: Method) -> list[nn.Module]:
    """The physical layers out of a deeper model's.

    `average` and `svd` give each the mean of the layers that it stands for on the path of the
    checkpoint's own depth (arXiv 2410.20672, section 2.2). Raises ValueError where there are too few
    layers, no such path, or, for `svd`, no low-rank parts to take the residual.
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
    """Let each use's private parts make up for what the shared layer lacks of the layer it stands for.

    Low-rank terms become the truncated singular value decomposition of the difference, the best of
    their rank in the Frobenius norm (arXiv 2410.20672, section 2.2); norms become that layer's own.
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
    """(outputs, rank) and (rank, inputs) whose product is the matrix's best approximation of that rank."""
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
