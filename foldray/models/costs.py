"""What each depth of a model costs, from its configuration alone."""

import copy
import itertools
import math
import random
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foldray.config.corpus import SAMPLE_RATE
from foldray.config.model import ModelSpec
from foldray.errors import UserError, one_line
from foldray.folding.plan import FoldPlan
from foldray.models.count import (
    PRECISIONS,
    DepthCost,
    JointCost,
    count_bytes,
    count_kept_bytes,
    count_macs,
    depth_costs,
)
from foldray.models.families import FAMILIES, family_of
from foldray.models.fold import fold, set_depths, stack_of, unroll
from foldray.models.stock_config import (
    check_plan,
    checkpoint_config,
    find_checkpoint,
    fold_errors,
    is_hub_name,
    stock_config,
    with_vocab_size,
)

MACS_SECONDS = 10.0
"""Length of the utterance whose MACs are counted; attention's share grows with it, ten seconds is usual."""
MOST_DRAWS = 10_000
"""Sets of depths that are looked at for the mean of a training step."""
TOKENS_PER_SECOND = 3
"""Tokens that a decoder writes for a second of audio, about what read English has in sub-words."""


def plan_costs(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> list[DepthCost]:
    """The cost of every depth of a fold that no one has trained yet.

    The shape is that of the checkpoint if it lies in a folder or bucket, else the one the spec states.
    """
    model = fold_on_meta(spec, plan, vocab_size)
    try:
        return _costs(model, plan.depths)
    except (RuntimeError, ValueError) as error:
        raise _no_such_shape(error) from None


def joint_cost(spec: ModelSpec, plan: FoldPlan, vocab_size: int, sampled: int | None = None) -> JointCost:
    """The cost of a training step: what comes before the blocks once, and a prefix that paths share once.

    sampled: how many of the depths between seed and deepest a step draws, as `loss.sampled`; its MACs are then the
    mean of all draws, its bytes those of the dearest (of MOST_DRAWS at random, where there are more). Two draws are
    counted, the others by their number of blocks.
    """
    model = fold_on_meta(spec, plan, vocab_size)
    nn.Module.eval(model)
    inputs = _meta_inputs(model)

    def macs_of(depths: tuple[int, ...]) -> float:
        set_depths(model, depths)
        return count_macs(model, inputs) / MACS_SECONDS

    blocks = {depths: len(plan.prefixes(depths)) for depths in _draws(plan.depths, sampled)}
    cheapest, dearest = min(blocks, key=blocks.__getitem__), max(blocks, key=blocks.__getitem__)
    macs = most = macs_of(dearest)
    kept = count_kept_bytes(model, inputs) / MACS_SECONDS
    if fewer := blocks[dearest] - blocks[cheapest]:
        mean = statistics.fmean(blocks.values())
        macs = most - (most - macs_of(cheapest)) * (blocks[dearest] - mean) / fewer
    return JointCost(macs, kept)


def _draws(depths: tuple[int, ...], sampled: int | None) -> list[tuple[int, ...]]:
    """The sets of depths that a step may run; MOST_DRAWS of them where there are more."""
    between = depths[1:-1]
    if sampled is None or sampled >= len(between):
        return [depths]
    if math.comb(len(between), sampled) <= MOST_DRAWS:
        draws = [*itertools.combinations(between, sampled)]
    else:
        rng = random.Random(0)
        draws = [tuple(sorted(rng.sample(between, sampled))) for _ in range(MOST_DRAWS)]
    return [(depths[0], *draw, depths[-1]) for draw in draws]


def fold_on_meta(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> PreTrainedModel:
    """The folded model of a spec without memory behind its shapes.

    Raises UserError, naming the field, for a shape that no model has and a plan that does not fit it.
    """
    config = _config(spec, plan, vocab_size)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = FAMILIES[spec.family].model_class(config)
    except Exception as error:  # transformers checks little: a KeyError or a division by zero, say
        raise _no_such_shape(error) from None
    with torch.device("meta"), fold_errors():
        return fold(model, plan)


def _no_such_shape(error: Exception) -> UserError:
    return UserError("model.config", f"no model has this shape: {type(error).__name__}: {one_line(error)}")


def _config(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> Any:
    checkpoint = find_checkpoint(spec.checkpoint)
    if checkpoint is None or is_hub_name(checkpoint):
        return stock_config(spec, plan.num_layers, vocab_size)
    config = checkpoint_config(spec, checkpoint)
    family = FAMILIES[spec.family]
    encoder, field = family.depth_config(config), family.depth_field
    check_plan(getattr(encoder, field), plan, spec.seed_layers)
    setattr(encoder, field, plan.num_layers)
    return with_vocab_size(config, vocab_size)


def costs_of(model: PreTrainedModel, depths: Sequence[int] = (), precision: str | None = None) -> list[DepthCost]:
    """The cost of some depths of a folded model, of all planned ones by default, stored at a precision."""
    plan = stack_of(model).plan
    with torch.device("meta"):
        shape = fold(type(model)(copy.deepcopy(model.config)), plan)
    return _costs(shape, depths or plan.depths, precision)


def bytes_at_precisions(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> dict[str, int]:
    """Bytes of the stored weights at each precision."""
    model = fold_on_meta(spec, plan, vocab_size)
    return {precision: count_bytes(model, precision) for precision in PRECISIONS}


def _costs(model: PreTrainedModel, depths: Sequence[int], precision: str | None = None) -> list[DepthCost]:
    set_depths(model, depths)
    nn.Module.eval(model)
    return depth_costs(model, stack_of(model), partial(unroll, model), _meta_inputs(model), MACS_SECONDS, precision)


def _meta_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    family = family_of(model)
    shape = family.input_shape(model, int(MACS_SECONDS * SAMPLE_RATE))
    inputs = {family.inputs: torch.empty(shape, device="meta")}
    if family.attention:
        inputs["decoder_input_ids"] = torch.zeros(1, TOKENS_PER_SECOND * int(MACS_SECONDS), device="meta").long()
    return inputs
