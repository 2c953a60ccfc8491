"""Fold stock models, choose their depths, and unroll one depth to a stock model."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foldray.errors import UserError
from foldray.folding.batchnorm import fix_statistics, make_stock
from foldray.folding.decoder import DecoderStack, decode_once, repeat_for_depths
from foldray.folding.plan import FoldPlan, decoder_depth
from foldray.folding.private import merge_private
from foldray.folding.stack import FoldedStack, check_layers, number_caches
from foldray.models.families import Family, family_of
from foldray.models.folded_model import FoldedModel
from foldray.models.windows import fit_positions, unfit_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# --- Folding ---------------------------------------------------------------------------------------


def fold(model: PreTrainedModel, plan: FoldPlan, decoder: FoldPlan | None = None) -> PreTrainedModel:
    """Fold a stock model, in place: its blocks become the physical layers of a plan.

    The folded model runs every depth of the plan at once. Its state dict keeps the stock keys of the
    seed, plus private parts. Layer dropping is disabled (a dropped shared layer would be missing from some
    uses only) and BatchNorm uses its moving statistics (see `foldray.folding.batchnorm`).

    Args:
        model: A stock model with `plan.num_layers` blocks.
        plan: The fold plan.
        decoder: A plan for the decoder too, where the model has one; by default it stays as it is. Its depths belong
            to those of `plan` by position, or a single one to all of them. A depth is named by the encoder's, and
            only planned ones can run, unless a single decoder depth serves all.

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
    _check(model, family, plan, decoder)  # before anything is changed
    fix_statistics(model)
    encoder.layers = FoldedStack(encoder.layers, plan, family.carried)
    _never_drop((encoder_config(model), encoder), "layerdrop", "encoder_layerdrop")
    _freeze_unused(model, family)
    if family.fixed_length:
        fit_positions(encoder)
    if family.decoder:
        module: Any = model.get_submodule(family.decoder)
        if decoder:
            module.layers = DecoderStack(module.layers, decoder)
            _never_drop((model.config,), "decoder_layerdrop")
            _never_drop((module,), "layerdrop")
            set_depths(model, plan.depths)
        repeat_for_depths(module)
    return model


def _check(model: PreTrainedModel, family: Family, plan: FoldPlan, decoder: FoldPlan | None) -> None:
    if reason := family.refusal(model.config):
        raise UserError(type(model).__name__, reason)
    family.check_plan(plan, decoder)
    check_layers(list(encoder_of(model).layers), plan)
    if decoder:
        layers: Any = model.get_submodule(family.decoder or "").layers
        try:
            check_layers(list(layers), decoder)
        except ValueError as error:
            raise ValueError(f"decoder.{error}") from None


def _never_drop(holders: Sequence[Any], *names: str) -> None:
    for holder in holders:
        for name in names:
            if hasattr(holder, name):
                setattr(holder, name, 0.0)


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
    stack, decoder = stack_of(model), decoder_stack_of(model)
    blocks = _unrolled_blocks(stack, _path(stack.plan, depth), family.first_block_only)
    # The copy's blocks are copied one by one, so the shared originals need not be copied first.
    stock = copy.deepcopy(model, {id(each): nn.ModuleList() for each in (stack, decoder) if each is not None})
    encoder_of(stock).layers = nn.ModuleList(blocks)
    family.set_layers(stock.config, depth)
    make_stock(stock)
    if family.fixed_length:
        unfit_positions(encoder_of(stock), stock.config)
    if family.decoder:
        module: Any = stock.get_submodule(family.decoder)
        decode_once(module)
        if decoder is not None:
            path = decoder.plan.path(_decoder_depth(stack, decoder, depth))
            module.layers = nn.ModuleList(_unrolled_blocks(decoder, path))
            family.set_layers(stock.config, depth, len(path))
    return stock


def _unrolled_blocks(stack: FoldedStack, path: tuple[int, ...], first_only: Sequence[str] = ()) -> list[nn.Module]:
    blocks = []
    for position, layer in enumerate(path):
        block = copy.deepcopy(stack.physical_layers()[layer])
        merge_private(block, path[:position].count(layer))
        number_caches(block, position)
        for name in first_only if position else ():
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


def decoder_stack_of(model: nn.Module | FoldedModel) -> DecoderStack | None:
    """Get the folded stack of a model's decoder; None if there is none."""
    model = getattr(model, "module", model)
    path = family_of(model).decoder
    layers: Any = getattr(model.get_submodule(path), "layers", None) if path else None
    return layers if isinstance(layers, DecoderStack) else None


def set_depths(model: nn.Module, depths: int | Sequence[int]) -> None:
    """Choose the depths that a folded model runs from now on.

    Args:
        model: A folded model.
        depths: One depth or several, trained or not; logits have B rows for each, in this order. With a folded decoder
            only planned ones have a path.

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
    decoder = decoder_stack_of(model)
    if decoder is not None:
        decoder.run_depths = tuple(_decoder_depth(stack, decoder, depth) for depth in chosen)
    stack.run_depths = chosen


def _decoder_depth(stack: FoldedStack, decoder: DecoderStack, depth: int) -> int:
    try:
        return decoder_depth(stack.plan, decoder.plan, depth)
    except KeyError as error:
        raise UserError("depth", str(error.args[0])) from None


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
