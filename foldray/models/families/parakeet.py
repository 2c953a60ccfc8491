"""Parakeet with CTC: FastConformer blocks on log-mel windows."""

from foldray.models.families import _mel
from foldray.models.families._family import Family

FAMILY = Family(
    name="parakeet",
    model="ParakeetForCTC",
    config="ParakeetCTCConfig",
    extractor="ParakeetFeatureExtractor",
    encoder="encoder",
    frames=_mel.subsampled_frames,
    input_shape=_mel.windows_shape,
    extractor_options=_mel.options,
    mel_bins=_mel.mel_bins,
    inputs="input_features",
    ctc_head="ctc_head",
    head=("ctc_head.",),
    nested=True,
)
