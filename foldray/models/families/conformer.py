"""foldray's own hybrid CTC/attention Conformer (arXiv 2505.21237), see `foldray.models.conformer`."""

from foldray.models.families import _mel
from foldray.models.families._family import Family

FAMILY = Family(
    name="conformer",
    model="ConformerForSpeech",
    config="ConformerConfig",
    extractor="ParakeetFeatureExtractor",
    encoder="encoder",
    frames=_mel.subsampled_frames,
    input_shape=_mel.windows_shape,
    extractor_options=_mel.options,
    mel_bins=_mel.mel_bins,
    inputs="input_features",
    ctc_head="ctc_head",
    attention=True,
    head=("ctc_head.", "lm_head.", "decoder.embed_tokens."),
    nested=True,
    module="foldray.models.conformer",
)
