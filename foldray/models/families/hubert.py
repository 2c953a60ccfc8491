"""HuBERT."""

from foldray.models.families._waveform import wav2vec2_like

FAMILY = wav2vec2_like("hubert", "Hubert", "hubert")
