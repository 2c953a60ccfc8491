"""Model families: where the block stack, head and features of each stock transformers model are.

A new family is a row in `FAMILIES`, and a branch in `output_frames` and in `pretrained` where its
shapes are its own.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from foldray.errors import UserError
from foldray.folding.stack import FoldedStack
from foldray.plan import FoldPlan

MEL_BINS = 80


@dataclass(frozen=True)
class Family:
    """Where things are in one family of stock models.

    model, config, extractor: class names in transformers; encoder: the attribute path from the CTC
    model to the module whose `layers` are the blocks; head: prefix of the CTC head's keys;
    inputs: the name of the model's audio input; surplus: key prefixes of pretraining heads that a
    checkpoint may hold and recognition does not need.
    """

    name: str
    model: str
    config: str
    extractor: str
    encoder: str
    head: str
    inputs: str
    surplus: tuple[str, ...] = ()


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="parakeet", model="ParakeetForCTC", config="ParakeetCTCConfig", extractor="ParakeetFeatureExtractor",
            encoder="encoder", head="ctc_head", inputs="input_features",
        ),
        Family(
            name="wav2vec2-bert", model="Wav2Vec2BertForCTC", config="Wav2Vec2BertConfig",
            extractor="SeamlessM4TFeatureExtractor", encoder="wav2vec2_bert.encoder", head="lm_head",
            inputs="input_features",
        ),
        Family(
            name="wav2vec2", model="Wav2Vec2ForCTC", config="Wav2Vec2Config", extractor="Wav2Vec2FeatureExtractor",
            encoder="wav2vec2.encoder", head="lm_head", inputs="input_values",
            surplus=("quantizer.", "project_hid.", "project_q."),
        ),
        Family(
            name="hubert", model="HubertForCTC", config="HubertConfig", extractor="Wav2Vec2FeatureExtractor",
            encoder="hubert.encoder", head="lm_head", inputs="input_values",
        ),
    )
}  # fmt: skip


def family_of(model: nn.Module) -> Family:
    """The family of a stock or folded CTC model. Raises UserError for a class that can't be folded."""
    for family in FAMILIES.values():
        if type(model).__name__ == family.model:
            return family
    known = ", ".join(family.model for family in FAMILIES.values())
    raise UserError(type(model).__name__, f"can't be folded; families are {known}")


# --- Folding ---------------------------------------------------------------------------------------


def fold(model: PreTrainedModel, plan: FoldPlan) -> PreTrainedModel:
    """Make a stock model with `plan.num_layers` blocks foldable, in place, and return it.

    The folded model runs every depth of the plan: logits (P*B, T, V), shallowest depth first. Its
    state dict keeps the stock keys of the seed. Layer dropping is switched off (a dropped shared
    layer would vanish from some uses only) and BatchNorm runs as a fixed affine (see `settle`).
    """
    encoder = _encoder(model)
    if isinstance(encoder.layers, FoldedStack):
        raise ValueError("the model is folded already; unroll() it first")
    encoder.layers = FoldedStack(encoder.layers, plan)
    encoder_config(model).layerdrop = 0.0
    if hasattr(encoder, "layerdrop"):
        encoder.layerdrop = 0.0
    _rest_mask_vector(model)
    return settle(model)


def unroll(model: PreTrainedModel, depth: int) -> PreTrainedModel:
    """A stock, unshared copy of one depth of a folded model; its output equals that depth's."""
    path = stack_of(model).plan.path(depth)
    blocks = stack_of(model).physical_layers()
    encoder = _encoder(model)
    # The copy's blocks are copied one by one, so the shared originals need not be copied first.
    stock = copy.deepcopy(model, {id(encoder.layers): nn.ModuleList()})
    _encoder(stock).layers = nn.ModuleList(copy.deepcopy(blocks[layer]) for layer in path)
    encoder_config(stock).num_hidden_layers = depth
    for module in stock.modules():
        if type(module) is FixedBatchNorm:
            module.__class__ = nn.BatchNorm1d  # type: ignore[assignment]
    return stock


def stack_of(model: nn.Module) -> FoldedStack:
    """The folded stack of a model, also inside DistributedDataParallel. Raises ValueError if it is not folded."""
    layers = _encoder(getattr(model, "module", model)).layers
    if not isinstance(layers, FoldedStack):
        raise ValueError("the model is not folded; call fold(model, plan) first")
    return layers


def set_depths(model: nn.Module, depths: Sequence[int]) -> None:
    """Choose which depths of its plan a folded model runs from now on. Raises UserError for one not planned."""
    stack = stack_of(model)
    for depth in depths:
        if depth not in stack.plan.depths:
            trained = ", ".join(map(str, stack.plan.depths))
            raise UserError("depth", f"{depth} was not trained; this model has {trained}")
    stack.run_depths = tuple(depths)


def _rest_mask_vector(model: PreTrainedModel) -> None:
    """Stop training the vector that masked frames get where no frame is masked: DDP refuses unused parameters."""
    config: Any = model.config
    masks = getattr(config, "apply_spec_augment", True) and getattr(config, "mask_time_prob", 0.0) > 0
    for name, parameter in model.named_parameters():
        if name.endswith("masked_spec_embed") and not masks:
            parameter.requires_grad_(False)


class FixedBatchNorm(nn.BatchNorm1d):
    """A BatchNorm whose statistics never move, in training too; its scale and shift still learn."""

    def train(self, mode: bool = True) -> "FixedBatchNorm":  # noqa: ARG002
        """Stay in evaluation mode."""
        super().train(False)
        return self


def settle(model: PreTrainedModel) -> PreTrainedModel:
    """Fix the statistics of every BatchNorm, in place: the loaded ones, or mean 0 and variance 1 from scratch.

    Batch statistics would mix the depths and make padding and the number of workers change the
    result: 3x padding moves valid logits by 0.29 in train mode.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = FixedBatchNorm
            module.eval()
    return model


def _encoder(model: nn.Module) -> Any:
    """The module whose `layers` are the blocks."""
    return model.get_submodule(family_of(model).encoder)


def encoder_config(model: PreTrainedModel) -> Any:
    """The configuration that counts the blocks (Parakeet nests it)."""
    return getattr(model.config, "encoder_config", model.config)


# --- Shapes ----------------------------------------------------------------------------------------


def output_frames(model: nn.Module, num_samples: Sequence[int]) -> list[int]:
    """Valid output frames of utterances of so many samples (16 kHz), as the model's own masks count them."""
    samples = torch.tensor(list(num_samples))
    stock: Any = getattr(model, "module", model)
    name = family_of(stock).name
    frames: Any
    if name == "parakeet":
        frames = stock._get_subsampling_output_length(samples // 160)
    elif name == "wav2vec2-bert":
        frames = _windows(samples) // _stacked(stock)
    else:
        frames = stock._get_feat_extract_output_lengths(samples)
    return [int(count) for count in frames]


def whole_frames(model: nn.Module, waveform_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The waveform without a rest that the extractor would keep or drop depending on the batch.

    Wav2Vec2-BERT stacks windows; its extractor cuts an unfinished stack from the batch's longest
    utterance only, so padding would change the shorter ones.
    """
    if family_of(model).name != "wav2vec2-bert":
        return waveform_T
    windows = _windows(len(waveform_T)) // _stacked(model) * _stacked(model)
    return waveform_T[: 400 + 160 * (windows - 1)]


def mel_bins(model: nn.Module) -> int:
    """Mel bins of one 10 ms window of a log-mel family."""
    config: Any = model.config
    return int(config.encoder_config.num_mel_bins) if family_of(model).name == "parakeet" else MEL_BINS


def _windows(samples: Any) -> Any:
    """25 ms windows every 10 ms."""
    return (samples - 400) // 160 + 1


def _stacked(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.feature_projection_input_dim) // MEL_BINS
