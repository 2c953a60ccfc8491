"""What each depth of a model costs, from its configuration alone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from foldray.errors import UserError
from foldray.folding.account import DepthCost, depth_costs
from foldray.models import FAMILIES, encoder_config, family_of, fold, output_frames, stack_of
from foldray.plan import FoldPlan
from foldray.pretrained import checkpoint_config, find_checkpoint, is_hub_name, stock_config
from foldray.processor import transformers_class
from foldray.spec import SAMPLE_RATE, ModelSpec

MACS_SECONDS = 10.0
"""Length of the utterance whose MACs are counted; attention's share grows with it, ten seconds is usual."""


def plan_costs(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> list[DepthCost]:
    """The cost of every depth of a fold that no one has trained yet.

    The shape is that of the checkpoint if it lies in a folder or bucket, else the one the spec states.
    """
    checkpoint = find_checkpoint(spec)
    if checkpoint is None or is_hub_name(checkpoint):
        config = stock_config(spec, plan.num_layers, vocab_size)
    else:
        config = checkpoint_config(spec, checkpoint)
        setattr(getattr(config, "encoder_config", config), FAMILIES[spec.family].depth_field, plan.num_layers)
        config.vocab_size = vocab_size
    try:
        return _costs(transformers_class(FAMILIES[spec.family].model), config, plan)
    except (RuntimeError, ValueError) as error:
        raise UserError("model.config", f"no model has this shape: {' '.join(str(error).split())[:160]}") from None


def costs_of(model: PreTrainedModel) -> list[DepthCost]:
    """The cost of every depth of a folded model."""
    return _costs(type(model), copy.deepcopy(model.config), stack_of(model).plan)


def _costs(model_class: Callable[[Any], PreTrainedModel], config: Any, plan: FoldPlan) -> list[DepthCost]:
    with torch.device("meta"):  # shapes without memory behind them
        model = fold(model_class(config), plan)
    model.eval()
    return depth_costs(model, stack_of(model), _meta_inputs(model), MACS_SECONDS)


def _meta_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    samples = int(MACS_SECONDS * SAMPLE_RATE)
    config: Any = model.config
    family = family_of(model)
    shape: tuple[int, ...] = (1, samples)
    if family.name == "parakeet":
        shape = (1, samples // 160, encoder_config(model).num_mel_bins)
    elif family.name == "wav2vec2-bert":
        shape = (1, output_frames(model, [samples])[0], config.feature_projection_input_dim)
    return {family.inputs: torch.empty(shape, device="meta")}
