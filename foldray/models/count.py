"""Count what a shape of model costs, from a few small folds of it on the meta device; nothing runs."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foldray.config.corpus import SAMPLE_RATE
from foldray.config.model import ModelSpec, PlannedModel
from foldray.config.recipes import load_recipe, recipe_names
from foldray.errors import UserError, one_line
from foldray.folding.block_shape import BlockShape
from foldray.folding.plan import FoldPlan, Private
from foldray.folding.private import block_shape
from foldray.models.config_checks import check_config
from foldray.models.costs import MACS_SECONDS, PLAN_VOCAB_SIZE, TOKENS_PER_SECOND, shape_key
from foldray.models.count_model import count_bytes, count_kept_bytes, count_macs, count_parameters
from foldray.models.families import FAMILIES, Family, family_of
from foldray.models.fold import fold, set_depths, stack_of
from foldray.models.shape_counts import (
    AS_IS,
    PRECISIONS,
    DecoderCounts,
    KeptBytes,
    Macs,
    ShapeCounts,
    Weights,
    write_shipped,
)
from foldray.models.stock_config import (
    check_seeds,
    checkpoint_config,
    find_checkpoint,
    fold_errors,
    is_hub_name,
    stock_config,
    with_vocab_size,
)
from foldray.models.windows import AUDIO_WINDOW

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def count_spec(planned: PlannedModel, vocab_size: int) -> ShapeCounts:
    """Count the shape of a spec's model. Raises UserError for a shape that no model has."""
    return count_config(_config(planned, vocab_size))


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
    """Folds of one shape, counted at some depths; decoder_layers: of another number of stock decoder blocks."""

    def __init__(self, family: Family, config: "PreTrainedConfig", decoder_layers: int | None = None) -> None:
        self._family, self._config, self._decoder_layers = family, config, decoder_layers

    def model(self, plan: FoldPlan) -> PreTrainedModel:
        config = copy.deepcopy(self._config)
        self._family.set_layers(config, plan.num_layers, self._decoder_layers)
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
    decoder = _count_decoder(family, config) if family.decoder_depth_field else None
    return ShapeCounts(*weights, Macs(one[0] - block - after, block, after), kept, shape, decoder)


def _count_decoder(family: Family, config: "PreTrainedConfig") -> DecoderCounts:
    """Count what one more block of a decoder adds; no depth shares it with another."""
    plan = FoldPlan(1, (1, 2))
    probes = [_Probe(family, config, layers) for layers in (1, 2)]
    (one, one_both), (two, two_both) = (probe.macs_and_kept(plan, (1,), (1, 2)) for probe in probes)
    decoder: Any = probes[0].model(plan).get_submodule(family.decoder or "")
    (block,) = decoder.layers
    kept = two[1] - one[1]
    kept_once = 2 * kept - (two_both[1] - one_both[1])
    return DecoderCounts(_weights_of(block), two[0] - one[0], kept, kept_once, block_shape(block))


def _weights_of(part: nn.Module) -> Weights:
    return Weights(count_parameters(part), {AS_IS: count_bytes(part), **{p: count_bytes(part, p) for p in PRECISIONS}})


def _weights(model: PreTrainedModel) -> tuple[Weights, Weights, Weights]:
    """Weights outside the blocks, of the first block and of the second."""
    whole, first, second = (_weights_of(part) for part in (model, *stack_of(model).physical_layers()))
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


def fold_on_meta(spec: ModelSpec, plan: FoldPlan, vocab_size: int, decoder: FoldPlan | None = None) -> PreTrainedModel:
    """Fold the model of a spec on the meta device, without memory for its weights.

    Raises:
        UserError: The configuration gives no model, or the plan does not fit it; names the field of the spec.
    """
    config = _config(PlannedModel(spec, plan, decoder), vocab_size)
    return _fold_on_meta(FAMILIES[spec.family], config, plan, decoder)


def _fold_on_meta(
    family: Family, config: "PreTrainedConfig", plan: FoldPlan, decoder: FoldPlan | None = None
) -> PreTrainedModel:
    check_config(config, "model.config")
    try:
        with torch.device("meta"):
            model: PreTrainedModel = family.model_class(config)
    except Exception as error:  # transformers checks little: this may be a KeyError or a division by zero
        raise _no_such_shape(error) from None
    with torch.device("meta"), fold_errors():
        return fold(model, plan, decoder)


def _no_such_shape(error: Exception) -> UserError:
    return UserError(
        "model.config", f"gives no model ({type(error).__name__}: {one_line(error)}); correct the field it names"
    )


def _config(planned: PlannedModel, vocab_size: int) -> "PreTrainedConfig":
    """The configuration of the seed."""
    spec, plan, decoder = planned.model, planned.plan, planned.decoder
    checkpoint = find_checkpoint(spec.checkpoint)
    if checkpoint is None or is_hub_name(checkpoint):
        if checkpoint and FAMILIES[spec.family].seq2seq:  # not looked up: its tokens are those of the usual checkpoint
            usual = FAMILIES[spec.family].config_class()
            vocab_size = getattr(usual, "vocab_size", vocab_size + 1) - 1
        config = stock_config(spec, plan.num_layers, vocab_size, decoder.num_layers if decoder else None)
        if FAMILIES[spec.family].fixed_length and checkpoint:
            setattr(config, AUDIO_WINDOW, spec.window)
        return config
    config = checkpoint_config(spec, checkpoint)
    check_seeds(config, planned)
    FAMILIES[spec.family].set_layers(config, plan.num_layers, decoder.num_layers if decoder else None)
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
        planned = spec.planned_model()
        entries.append((shape_key(spec.model, vocab_size, planned.decoder), count_spec(planned, vocab_size)))
    write_shipped(entries)


if __name__ == "__main__":
    main()
