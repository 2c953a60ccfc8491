"""Folding and unfolding stock models, and the shapes of what goes in and out of them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foldray.errors import UserError
from foldray.folding.batchnorm import fix_statistics, make_stock
from foldray.folding.decoder import decode_once, repeat_for_depths
from foldray.folding.plan import FoldPlan
from foldray.folding.private import merge_private
from foldray.folding.stack import FoldedStack, check_layers
from foldray.models.families import Family, family_of

# --- Folding ---------------------------------------------------------------------------------------


def fold(model: PreTrainedModel, plan: FoldPlan) -> PreTrainedModel:
    """Make a stock model with `plan.num_layers` blocks foldable, in place, and return it.

    The folded model runs every depth of the plan: logits (P*B, T, V), shallowest depth first; with a
    decoder, its inputs are repeated for every depth and the logits are (P*B, U, V). Give no labels:
    the library's own losses know of one depth; ours are in `foldray.folding.loss`. The state dict
    keeps the stock keys of the seed, private parts beside them. Layer dropping is switched off (a
    dropped shared layer would vanish from some uses only) and BatchNorm runs as a fixed affine (see
    `foldray.folding.batchnorm`). Raises UserError for a model, ValueError for a plan that does not fit.
    """
    family = family_of(model)
    encoder = encoder_of(model)
    if isinstance(encoder.layers, FoldedStack):
        raise ValueError("the model is folded already; unroll() it first")
    _refuse_layout(model, family, plan)
    check_layers(list(encoder.layers), plan)  # before anything is changed
    fix_statistics(model)
    encoder.layers = FoldedStack(encoder.layers, plan, family.carried)
    for holder in (encoder_config(model), encoder):
        for name in ("layerdrop", "encoder_layerdrop"):
            if hasattr(holder, name):
                setattr(holder, name, 0.0)
    _freeze_unused(model, family)
    if family.decoder:
        repeat_for_depths(model.get_submodule(family.decoder))
    return model


def _refuse_layout(model: PreTrainedModel, family: Family, plan: FoldPlan) -> None:
    if reason := family.refusal(model.config):
        raise UserError(type(model).__name__, reason)
    family.check_plan(plan)


def unroll(model: PreTrainedModel, depth: int) -> PreTrainedModel:
    """A stock, unshared copy of one depth of a folded model; its output equals that depth's.

    Private parts are written into the copies. Raises UserError for a depth that has no path.
    """
    family = family_of(model)
    encoder = encoder_of(model)
    # The copy's blocks are copied one by one, so the shared originals need not be copied first.
    stock = copy.deepcopy(model, {id(encoder.layers): nn.ModuleList()})
    encoder_of(stock).layers = nn.ModuleList(_unrolled_blocks(stack_of(model), depth, family))
    setattr(encoder_config(stock), family.depth_field, depth)
    make_stock(stock)
    if family.decoder:
        decode_once(stock.get_submodule(family.decoder))
    return stock


def _unrolled_blocks(stack: FoldedStack, depth: int, family: Family) -> list[nn.Module]:
    path = _path(stack.plan, depth)
    blocks = []
    for position, layer in enumerate(path):
        block = copy.deepcopy(stack.physical_layers()[layer])
        merge_private(block, path[:position].count(layer))
        for name in family.first_block_only if position else ():
            parent, _, child = name.rpartition(".")
            if hasattr(block.get_submodule(parent), child):
                delattr(block.get_submodule(parent), child)
        blocks.append(block)
    return blocks


def stack_of(model: nn.Module) -> FoldedStack:
    """The folded stack of a model, also inside DistributedDataParallel. Raises ValueError if it is not folded."""
    layers = encoder_of(getattr(model, "module", model)).layers
    if not isinstance(layers, FoldedStack):
        raise ValueError("the model is not folded; call fold(model, plan) first")
    return layers


def set_depths(model: nn.Module, depths: int | Sequence[int]) -> None:
    """Choose which depths a folded model runs from now on, trained or not. Raises UserError for one without a path."""
    stack = stack_of(model)
    chosen = (depths,) if isinstance(depths, int) else tuple(depths)
    for depth in chosen:
        _path(stack.plan, depth)
    stack.run_depths = chosen


def _path(plan: FoldPlan, depth: int) -> tuple[int, ...]:
    try:
        return plan.path(depth)
    except KeyError as error:
        trained = ", ".join(map(str, plan.depths))
        raise UserError("depth", f"{error.args[0]} (trained: {trained})") from None


def _freeze_unused(model: PreTrainedModel, family: Family) -> None:
    """Stop training what no forward pass reaches: DDP refuses unused parameters.

    The vector that masked frames get is one of them where no frame is masked.
    """
    config: Any = model.config
    masks = getattr(config, "apply_spec_augment", True) and getattr(config, "mask_time_prob", 0.0) > 0
    for name, parameter in model.named_parameters():
        if name.startswith(family.unused or ("\0",)) or (name.endswith("masked_spec_embed") and not masks):
            parameter.requires_grad_(False)


def encoder_of(model: nn.Module) -> Any:
    """The module whose `layers` are the blocks."""
    return model.get_submodule(family_of(model).encoder)


def encoder_config(model: PreTrainedModel) -> Any:
    """The configuration that counts the blocks (Parakeet nests it)."""
    return family_of(model).depth_config(model.config)


# --- Shapes ----------------------------------------------------------------------------------------


def ctc_logits(output: Any) -> torch.Tensor:
    """The CTC logits (P*B, T, V) in what a model puts out."""
    logits: torch.Tensor = output.ctc_logits if "ctc_logits" in output else output.logits
    return logits
