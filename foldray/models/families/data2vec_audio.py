"""data2vec on audio."""

from foldray.models.families._waveform import wav2vec2_like

FAMILY = wav2vec2_like("data2vec-audio", "Data2VecAudio", "data2vec_audio")
