"""UniSpeech."""

from foldray.models.families._waveform import PRETRAINING, wav2vec2_like

FAMILY = wav2vec2_like("unispeech", "UniSpeech", "unispeech", surplus=(*PRETRAINING, "ctc_proj."))
