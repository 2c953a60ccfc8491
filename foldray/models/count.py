"""Count parameters, bytes, multiply-accumulates and kept activations of models on the meta device; nothing runs."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from foldray.config.corpus import SAMPLE_RATE
from foldray.config.model import ModelSpec
from foldray.config.recipes import load_recipe, recipe_names
from foldray.errors import UserError, one_line
from foldray.folding.block_shape import BlockShape
from foldray.folding.plan import FoldPlan, Private
from foldray.folding.private import block_shape, is_private_key
from foldray.folding.stack import FoldedStack
from foldray.models.costs import MACS_SECONDS, PLAN_VOCAB_SIZE, TOKENS_PER_SECOND, bytes_at, shape_key
from foldray.models.families import FAMILIES, Family, family_of
from foldray.models.fold import fold, set_depths, stack_of
from foldray.models.shape_counts import AS_IS, PRECISIONS, KeptBytes, Macs, ShapeCounts, Weights, write_shipped
from foldray.models.stock_config import (
    check_plan,
    checkpoint_config,
    find_checkpoint,
    fold_errors,
    is_hub_name,
    stock_config,
    with_vocab_size,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# --- Single models ---------------------------------------------------------------------------------


def count_parameters(model: nn.Module) -> int:
    """Count stored parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module, precision: str | None = None) -> int:
    """Count the bytes of weights and buffers, each tensor once: as they are, or stored at a precision.

    `int8` stores matrices and convolutions as one byte a weight and a float32 scale for each output
    channel (symmetric, as in torch's and ONNX Runtime's weight quantisation), everything else in float32.
    """
    distinct = {tensor.data_ptr() or id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(_bytes_of(tensor, precision) for tensor in distinct.values())


def _bytes_of(tensor: Tensor, precision: str | None) -> int:
    if precision is None or not tensor.is_floating_point():
        return tensor.numel() * tensor.element_size()
    return bytes_at(tuple(tensor.shape), precision)


def count_private(stack: FoldedStack, depth: int) -> int:
    """Count the parameters of the private parts that one depth runs."""
    uses = stack.plan.uses([depth])
    return sum(
        parameter.numel()
        for block, count in zip(stack.physical_layers(), uses, strict=True)
        for key, parameter in block.named_parameters()
        if is_private_key(key) and int(key.split(".private.")[1].split(".")[0]) < count
    )


def count_macs(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Count the multiply-accumulates of a forward pass at the depths that the model is set to.

    They are half the floating-point operations that torch's counter finds in matrix products and convolutions.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return float(counter.get_total_flops()) / 2


def count_kept_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Count the bytes of activations that a forward pass keeps for backward, in the model's precision and mode."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too: another one could get the storage of one that is gone

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# --- Shapes ----------------------------------------------------------------------------------------


def count_spec(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> ShapeCounts:
    """Count the shape of a spec's model. Raises UserError for a shape that no model has."""
    return count_config(_config(spec, plan, vocab_size))


def count_config(config: "PreTrainedConfig") -> ShapeCounts:
    """Count the shape of a transformers configuration, whatever its number of blocks.

    Counts are exact sums over applications of blocks, hidden states and depths, so a few small folds determine them.

    Raises:
        UserError: The configuration gives no model.
    """
    family = next(family for family in FAMILIES.values() if family.config == type(config).__name__)
    try:
        return _count_family(family, config)
    except (RuntimeError, ValueError) as error:
        raise _no_such_shape(error) from None


class _Probe:
    """Folds of one shape, counted at some depths."""

    def __init__(self, family: Family, config: "PreTrainedConfig") -> None:
        self._family, self._config = family, config

    def model(self, plan: FoldPlan) -> PreTrainedModel:
        config = copy.deepcopy(self._config)
        setattr(self._family.depth_config(config), self._family.depth_field, plan.num_layers)
        model = _fold_on_meta(self._family, config, plan)
        nn.Module.eval(model)
        return model

    def macs_and_kept(self, plan: FoldPlan, *runs: Sequence[int]) -> list[tuple[float, int]]:
        model = self.model(plan)
        inputs = _meta_inputs(model)
        counted = []
        for depths in runs:
            set_depths(model, depths)
            counted.append((count_macs(model, inputs), count_kept_bytes(model, inputs)))
        return counted


def _count_family(family: Family, config: "PreTrainedConfig") -> ShapeCounts:
    probe = _Probe(family, config)
    repeated = FoldPlan(1, (1, 2, 3))
    one, two, both, three = probe.macs_and_kept(repeated, (1,), (2,), (1, 2), (1, 2, 3))
    (branched,) = probe.macs_and_kept(FoldPlan(2, (2, 3), paths=((0, 1), (0, 0, 1))), (2, 3))
    (chained,) = probe.macs_and_kept(FoldPlan(2, (2, 3), paths=((0, 1), (0, 1, 1))), (2, 3))
    (unshared,) = probe.macs_and_kept(FoldPlan(2, (2,)), (2,))
    block = two[0] - one[0]
    after = both[0] - two[0]
    inside = branched[1] - chained[1]  # four applications against three, two states each
    state = two[1] - one[1] - inside
    statistics = unshared[1] - two[1]
    kept = KeptBytes(
        one_depth=one[1] - inside - statistics,
        two_depths=both[1] - 2 * inside - state - statistics,
        further_depth=three[1] - both[1] - inside - state,
        block=inside,
        state=state,
        statistics=statistics,
    )
    weights = _weights(probe.model(FoldPlan(2, (2,))))
    shape = _with_kept_weights(probe, block_shape(stack_of(probe.model(FoldPlan(1, (1,))))[0]), two[1])
    return ShapeCounts(*weights, Macs(one[0] - block - after, block, after), kept, shape)


def _weights(model: PreTrainedModel) -> tuple[Weights, Weights, Weights]:
    """Weights outside the blocks, of the first block and of the second."""
    whole, first, second = (
        Weights(count_parameters(part), {AS_IS: count_bytes(part), **{p: count_bytes(part, p) for p in PRECISIONS}})
        for part in (model, *stack_of(model).physical_layers())
    )
    outside = {key: whole.bytes[key] - first.bytes[key] - second.bytes[key] for key in whole.bytes}
    return Weights(whole.params - first.params - second.params, outside), first, second


def _with_kept_weights(probe: _Probe, shape: BlockShape, plain: int) -> BlockShape:
    """The shape with `keeps_weight` counted: relative positions, for one, need no gradient."""
    kept = {}
    for name in {each.name for each in shape.projections}:
        if min(min(p.outputs, p.inputs) for p in shape.projections if p.name == name) < 2:
            continue  # too small for a low-rank term
        plan = FoldPlan(1, (1, 2), private=Private(lora_rank=1, lora_on=(name,)))
        kept[name] = probe.macs_and_kept(plan, (2,))[0][1] > plain
    projections = [dataclasses.replace(p, keeps_weight=kept.get(p.name, True)) for p in shape.projections]
    return dataclasses.replace(shape, projections=tuple(projections))


def fold_on_meta(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> PreTrainedModel:
    """Fold the model of a spec on the meta device, without memory for its weights.

    Raises:
        UserError: The configuration gives no model, or the plan does not fit it; names the field of the spec.
    """
    return _fold_on_meta(FAMILIES[spec.family], _config(spec, plan, vocab_size), plan)


def _fold_on_meta(family: Family, config: "PreTrainedConfig", plan: FoldPlan) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model: PreTrainedModel = family.model_class(config)
    except Exception as error:  # transformers checks little: this may be a KeyError or a division by zero
        raise _no_such_shape(error) from None
    with torch.device("meta"), fold_errors():
        return fold(model, plan)


def _no_such_shape(error: Exception) -> UserError:
    return UserError(
        "model.config", f"gives no model ({type(error).__name__}: {one_line(error)}); correct the field it names"
    )


def _config(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> "PreTrainedConfig":
    checkpoint = find_checkpoint(spec.checkpoint)
    if checkpoint is None or is_hub_name(checkpoint):
        return stock_config(spec, plan.num_layers, vocab_size)
    config = checkpoint_config(spec, checkpoint)
    family = FAMILIES[spec.family]
    encoder = family.depth_config(config)
    check_plan(getattr(encoder, family.depth_field), plan, spec.seed_layers)
    setattr(encoder, family.depth_field, plan.num_layers)
    return with_vocab_size(config, vocab_size)


def _meta_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    family = family_of(model)
    shape = family.input_shape(model, int(MACS_SECONDS * SAMPLE_RATE))
    inputs = {family.inputs: torch.empty(shape, device="meta")}
    if family.attention:
        inputs["decoder_input_ids"] = torch.zeros(1, TOKENS_PER_SECOND * int(MACS_SECONDS), device="meta").long()
    return inputs


def main() -> None:
    """Count the shapes of all shipped recipes and write the file that is shipped."""
    entries = []
    for name in recipe_names():
        spec = load_recipe(name)
        vocab_size = spec.corpus.vocab_size or PLAN_VOCAB_SIZE
        entries.append((shape_key(spec.model, vocab_size), count_spec(spec.model, spec.fold.plan(), vocab_size)))
    write_shipped(entries)


if __name__ == "__main__":
    main()
