"""Whisper: log-mel windows of a fixed length, an attention decoder and no CTC."""

from typing import TYPE_CHECKING

from foldray.models.families._family import Family
from foldray.models.folded_model import FoldedModel
from foldray.models.windows import takes_audio_window

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


_FRAME = 320
"""Samples of an output frame: two log-mel windows of 10 ms."""


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    # Of the audio: the window is longer, and silence behind the audio has frames too.
    return (-(-samples // _FRAME)).clamp(max=model.config.max_source_positions)


def _input_shape(model: FoldedModel, samples: int) -> tuple[int, ...]:
    most = model.config.max_source_positions
    frames = min(-(-samples // _FRAME), most) if takes_audio_window(model.config) else most
    return (1, model.config.num_mel_bins, 2 * frames)


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
    decoder_depth_field="decoder_layers",
    front=("model.encoder.conv",),
    in_runtimes=True,
)
