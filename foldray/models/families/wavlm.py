"""WavLM: the first block computes a position bias, which every block passes on."""

from foldray.models.families._waveform import PRETRAINING, wav2vec2_like

FAMILY = wav2vec2_like(
    "wavlm",
    "WavLM",
    "wavlm",
    carried="position_bias",
    first_block_only=("attention.rel_attn_embed",),
    surplus=PRETRAINING,
)
