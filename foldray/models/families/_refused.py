"""Speech models of transformers that can't be folded, and why."""

_TRANSDUCER = "foldray trains CTC and attention, not transducers"
_PROMPT = "its language model takes one audio frame for each audio token of the prompt, so not the frames of two depths"
_ADAPTER = "its adapter after the blocks masks single utterances, and there is one of each for every depth"

REFUSED = {
    "SEWDForCTC": "its blocks take query states from the block before and a convolution after the first one only",
    "MoonshineStreamingForConditionalGeneration": "each of its blocks has an attention window of its own",
    "ParakeetForRNNT": f"{_TRANSDUCER}; ParakeetForCTC folds",
    "ParakeetForTDT": f"{_TRANSDUCER}; ParakeetForCTC folds",
    "NemotronAsrStreamingForRNNT": _TRANSDUCER,
    "Nemotron3_5AsrForRNNT": _TRANSDUCER,
    "SpeechT5ForSpeechToText": "its blocks share one relative-position encoder with the text model",
    "GraniteSpeech5ForCTC": "its first two blocks halve the frame rate, and its middle one adds CTC outputs to its own",
    "GraniteSpeechForConditionalGeneration": f"the middle block of its encoder adds CTC outputs to its own; {_PROMPT}",
    "GraniteSpeechPlusForConditionalGeneration": f"its encoder's middle block adds CTC outputs to its own; {_PROMPT}",
    "KyutaiSpeechToTextForConditionalGeneration": "it is a language model over audio codes and has no encoder",
    "SeamlessM4TForSpeechToText": _ADAPTER,
    "SeamlessM4Tv2ForSpeechToText": _ADAPTER,
    "SpeechEncoderDecoderModel": "its encoder and decoder may be of any class; fold the encoder's own recogniser",
    "VoxtralRealtimeForConditionalGeneration": "it adds one audio frame to each token, so not those of two depths",
    **dict.fromkeys(
        (
            "AudioFlamingo3ForConditionalGeneration",
            "FunAsrNanoForConditionalGeneration",
            "GlmAsrForConditionalGeneration",
            "MossTranscribeDiarizeForConditionalGeneration",
            "MusicFlamingoForConditionalGeneration",
            "Nemotron3_5TranscribeForConditionalGeneration",
            "Qwen2AudioForConditionalGeneration",
            "Qwen3ASRForConditionalGeneration",
            "VibeVoiceAsrForConditionalGeneration",
            "VoxtralForConditionalGeneration",
        ),
        _PROMPT,
    ),
    "OmniASRForConditionalGeneration": f"{_PROMPT}; OmniASRForCTC folds",
}
"""The reason why a class's blocks can't be repeated, by the name of the class."""
