"""Fold stock models, choose their depths, and unroll one depth to a stock model."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# --- Folding ---------------------------------------------------------------------------------------


def fold(model: PreTrainedModel, plan: FoldPlan) -> PreTrainedModel:
    """Fold a stock model, in place: its blocks become the physical layers of a plan.

    The folded model runs every depth of the plan at once. Its state dict keeps the stock keys of the
    seed, plus private parts. Layer dropping is disabled (a dropped shared layer would be missing from some
    uses only) and BatchNorm uses its moving statistics (see `foldray.folding.batchnorm`).

    Args:
        model: A stock model with `plan.num_layers` blocks.
        plan: The fold plan.

    Returns:
        The same model. Its logits are (P*B, T, V): all utterances at the shallowest depth first. With a decoder
        they are (P*B, U, V), and its inputs are repeated for every depth. Give it no labels: the library's losses
        expect one depth; the joint loss is in `foldray.folding.loss`.

    Raises:
        UserError: The model can't be folded.
        ValueError: The plan does not fit the model; names the field.

    Example:
        >>> model = transformers.Wav2Vec2ForCTC.from_pretrained("./wav2vec2-8-layers")
        >>> model = fold(model, FoldPlan(num_layers=8, depths=(8, 12)))
        >>> model(audio_BT).logits.shape  # two depths of a batch of 4
        torch.Size([8, 499, 32])
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
    """Copy one depth of a folded model to a stock model without shared layers; outputs are equal.

    Args:
        model: A folded model, which stays as it is.
        depth: The depth, trained or not; private parts are merged into the copied layers.

    Returns:
        A stock model of `depth` blocks.

    Raises:
        UserError: The depth has no path.

    Example:
        >>> unroll(model, 12).save_pretrained("./wav2vec2-12-layers")
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


def stack_of(model: nn.Module | FoldedModel) -> FoldedStack:
    """Get the folded stack of a model, also inside DistributedDataParallel. Raises ValueError if it is not folded."""
    layers = encoder_of(getattr(model, "module", model)).layers
    if not isinstance(layers, FoldedStack):
        raise ValueError("the model is not folded; call fold(model, plan) first")
    return layers


def set_depths(model: nn.Module, depths: int | Sequence[int]) -> None:
    """Choose the depths that a folded model runs from now on.

    Args:
        model: A folded model.
        depths: One depth or several, trained or not; logits have B rows for each, in this order.

    Raises:
        UserError: A depth has no path, or is given twice; or none is given.

    Example:
        >>> set_depths(model, 12)
        >>> model(audio_BT).logits.shape
        torch.Size([4, 499, 32])
    """
    stack = stack_of(model)
    chosen = (depths,) if isinstance(depths, int) else tuple(depths)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError("depths", f"choose at least one depth, each once, not {list(chosen)}")
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
    """Freeze unused parameters, which DDP refuses; the mask vector is one of them if no frames are masked."""
    config: PreTrainedConfig = model.config
    masks = getattr(config, "apply_spec_augment", True) and getattr(config, "mask_time_prob", 0.0) > 0
    for name, parameter in model.named_parameters():
        if name.startswith(family.unused or ("\0",)) or (name.endswith("masked_spec_embed") and not masks):
            parameter.requires_grad_(False)


def encoder_of(model: nn.Module | FoldedModel) -> Any:
    """Get the module whose `layers` are the blocks."""
    return model.get_submodule(family_of(model).encoder)


def encoder_config(model: PreTrainedModel) -> "PreTrainedConfig":
    """Get the configuration that counts the blocks (Parakeet nests it)."""
    return family_of(model).depth_config(model.config)


# --- Shapes ----------------------------------------------------------------------------------------


def ctc_logits(output: Any) -> torch.Tensor:
    """Get the CTC logits (P*B, T, V) from a model's output."""
    logits: torch.Tensor = output.ctc_logits if "ctc_logits" in output else output.logits
    return logits
