"""Whisper: log-mel windows of a fixed length, an attention decoder and no CTC."""

from typing import TYPE_CHECKING

from foldray.models.families._family import Family
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    return samples.new_full(samples.shape, model.config.max_source_positions)


def _input_shape(model: FoldedModel, samples: int) -> tuple[int, ...]:  # noqa: ARG001
    return (1, model.config.num_mel_bins, 2 * model.config.max_source_positions)


def _options(config: "PreTrainedConfig") -> dict[str, object]:
    seconds = config.max_source_positions // 50  # windows every 10 ms, halved by the front end
    return {"feature_size": config.num_mel_bins, "chunk_length": seconds}


FAMILY = Family(
    name="whisper",
    model="WhisperForConditionalGeneration",
    config="WhisperConfig",
    extractor="WhisperFeatureExtractor",
    encoder="model.encoder",
    frames=_frames,
    input_shape=_input_shape,
    extractor_options=_options,
    inputs="input_features",
    fixed_length=True,
    ctc_head=None,
    attention=True,
    decoder="model.decoder",
    head=("proj_out.",),
    depth_field="encoder_layers",
    front=("model.encoder.conv",),
)
