"""wav2vec 2.0 with Conformer blocks; the stock model creates a positional convolution that it never runs."""

from foldray.models.families._waveform import PRETRAINING, wav2vec2_like

FAMILY = wav2vec2_like(
    "wav2vec2-conformer",
    "Wav2Vec2Conformer",
    "wav2vec2_conformer",
    surplus=PRETRAINING,
    unused=("wav2vec2_conformer.encoder.pos_conv_embed.",),
)
