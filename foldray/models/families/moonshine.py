"""Moonshine: waveforms, an attention decoder and no CTC."""

from foldray.models.families._family import Family
from foldray.models.families._waveform import conv_frames, waveform_shape

FAMILY = Family(
    name="moonshine",
    model="MoonshineForConditionalGeneration",
    config="MoonshineConfig",
    extractor="Wav2Vec2FeatureExtractor",
    encoder="model.encoder",
    frames=conv_frames,
    input_shape=waveform_shape,
    extractor_options=lambda config: {"do_normalize": False, "return_attention_mask": True},
    ctc_head=None,
    attention=True,
    decoder="model.decoder",
    head=("proj_out.",),
    depth_field="encoder_num_hidden_layers",
    front=("model.encoder.conv", "model.encoder.groupnorm."),
)
