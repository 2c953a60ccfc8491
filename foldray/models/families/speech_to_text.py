"""Speech2Text: log-mel windows, an attention decoder and no CTC."""

from typing import TYPE_CHECKING

from foldray.models.families._family import Family
from foldray.models.families._mel import kaldi_windows
from foldray.models.families._waveform import conv_frames
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    return conv_frames(model, kaldi_windows(samples))


def _input_shape(model: FoldedModel, samples: int) -> tuple[int, ...]:
    return (1, kaldi_windows(samples), model.config.input_feat_per_channel)


def _options(config: "PreTrainedConfig") -> dict[str, object]:
    return {"feature_size": config.input_feat_per_channel, "num_mel_bins": config.input_feat_per_channel}


FAMILY = Family(
    name="speech-to-text",
    model="Speech2TextForConditionalGeneration",
    config="Speech2TextConfig",
    extractor="Speech2TextFeatureExtractor",
    encoder="model.encoder",
    frames=_frames,
    input_shape=_input_shape,
    extractor_options=_options,
    mel_bins=lambda config: int(config.input_feat_per_channel),
    inputs="input_features",
    ctc_head=None,
    attention=True,
    decoder="model.decoder",
    head=("lm_head.", "model.decoder.embed_tokens."),
    depth_field="encoder_layers",
    decoder_depth_field="decoder_layers",
    untrained="its tokenizer has no tokenizer.json",
    front=("model.encoder.conv.",),
)
