"""wav2vec 2.0."""

from foldray.models.families._waveform import PRETRAINING, wav2vec2_like

FAMILY = wav2vec2_like("wav2vec2", "Wav2Vec2", "wav2vec2", surplus=PRETRAINING)
