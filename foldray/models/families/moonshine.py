"""Moonshine: waveforms, an attention decoder and no CTC."""

from typing import TYPE_CHECKING

from foldray.models.families._family import Family
from foldray.models.families._waveform import waveform_shape
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    # The library's own count takes one length at a time.
    return samples.new_tensor([int(model._get_feat_extract_output_lengths(length)) for length in samples.tolist()])


FAMILY = Family(
    name="moonshine",
    model="MoonshineForConditionalGeneration",
    config="MoonshineConfig",
    extractor="Wav2Vec2FeatureExtractor",
    encoder="model.encoder",
    frames=_frames,
    input_shape=waveform_shape,
    extractor_options=lambda config: {"do_normalize": False, "return_attention_mask": True},
    ctc_head=None,
    attention=True,
    decoder="model.decoder",
    head=("proj_out.",),
    depth_field="encoder_num_hidden_layers",
    decoder_depth_field="decoder_num_hidden_layers",
    front=("model.encoder.conv", "model.encoder.groupnorm."),
)
