"""UniSpeech-SAT."""

from foldray.models.families._waveform import PRETRAINING, wav2vec2_like

FAMILY = wav2vec2_like(
    "unispeech-sat",
    "UniSpeechSat",
    "unispeech_sat",
    surplus=(*PRETRAINING, "speaker_proj.", "label_embeddings_concat", "layer_norm_for_extract."),
)
