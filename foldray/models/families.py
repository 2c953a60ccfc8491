"""Model families: where the block stack, head and features of each stock transformers model are.

The only place that names model classes. A new family is a row in `FAMILIES`; what its shapes need
beyond that is in the last section of `foldray.models.fold`.
"""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from foldray.errors import UserError


@dataclass(frozen=True)
class Family:
    """Where things are in one family of stock models.

    model, config, extractor: class names in transformers.
    encoder: the attribute path from the model to the module whose `layers` are the blocks.
    kind: what the model puts out: `ctc` logits, those of a decoder (`attention`), or both (`hybrid`).
    head: prefixes of the keys that depend on the vocabulary.
    inputs, features: the name of the model's audio input, and what that is.
    nested: the class of the encoder's configuration, where it lies in `encoder_config`.
    depth_field: the field of the configuration that counts the blocks.
    carried: what blocks hand on besides hidden states.
    decoder: the attribute path to a decoder that does not know of depths.
    surplus: prefixes of keys that a checkpoint may hold and recognition does not need.
    unused: prefixes of parameters that no forward pass reaches.
    front: prefixes of what turns audio into frames, before any block.
    """

    name: str
    model: str
    config: str
    extractor: str
    encoder: str
    kind: Literal["ctc", "attention", "hybrid"] = "ctc"
    head: tuple[str, ...] = ("lm_head.",)
    inputs: str = "input_values"
    features: Literal["waveform", "mel", "stacked_mel", "thirty_seconds"] = "waveform"
    nested: str | None = None
    depth_field: str = "num_hidden_layers"
    carried: str | None = None
    decoder: str | None = None
    surplus: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    front: tuple[str, ...] = ("encoder.subsampling.",)


_PRETRAINING = ("quantizer.", "project_hid.", "project_q.")


def _on_waveforms(name: str, prefix: str, base: str, **more: Any) -> Family:
    """wav2vec 2.0 and its descendants: the same layout under other names."""
    extractor = "Wav2Vec2FeatureExtractor"
    more["front"] = (f"{base}.feature_extractor.",)
    return Family(name, f"{prefix}ForCTC", f"{prefix}Config", extractor, f"{base}.encoder", **more)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="parakeet", model="ParakeetForCTC", config="ParakeetCTCConfig", extractor="ParakeetFeatureExtractor",
            encoder="encoder", head=("ctc_head.",), inputs="input_features", features="mel",
            nested="ParakeetEncoderConfig",
        ),
        Family(
            name="wav2vec2-bert", model="Wav2Vec2BertForCTC", config="Wav2Vec2BertConfig",
            extractor="SeamlessM4TFeatureExtractor", encoder="wav2vec2_bert.encoder",
            inputs="input_features", features="stacked_mel", front=("wav2vec2_bert.feature_projection.",),
        ),
        _on_waveforms("wav2vec2", "Wav2Vec2", "wav2vec2", surplus=_PRETRAINING),
        _on_waveforms("hubert", "Hubert", "hubert"),
        _on_waveforms("wavlm", "WavLM", "wavlm", carried="position_bias", surplus=_PRETRAINING),
        _on_waveforms("data2vec-audio", "Data2VecAudio", "data2vec_audio"),
        _on_waveforms(
            "unispeech-sat", "UniSpeechSat", "unispeech_sat",
            surplus=(*_PRETRAINING, "speaker_proj.", "label_embeddings_concat", "layer_norm_for_extract."),
        ),
        _on_waveforms(
            "wav2vec2-conformer", "Wav2Vec2Conformer", "wav2vec2_conformer", surplus=_PRETRAINING,
            unused=("wav2vec2_conformer.encoder.pos_conv_embed.",),
        ),
        _on_waveforms("sew", "SEW", "sew"),
        Family(
            name="whisper", model="WhisperForConditionalGeneration", config="WhisperConfig",
            extractor="WhisperFeatureExtractor", encoder="model.encoder", decoder="model.decoder", kind="attention",
            head=("proj_out.",), inputs="input_features", features="thirty_seconds", depth_field="encoder_layers",
            front=("model.encoder.conv",),
        ),
        Family(
            name="moonshine", model="MoonshineForConditionalGeneration", config="MoonshineConfig",
            extractor="Wav2Vec2FeatureExtractor", encoder="model.encoder", decoder="model.decoder", kind="attention",
            head=("proj_out.",), depth_field="encoder_num_hidden_layers",
            front=("model.encoder.conv", "model.encoder.groupnorm."),
        ),
        Family(
            name="conformer", model="ConformerForSpeech", config="ConformerConfig",
            extractor="ParakeetFeatureExtractor", encoder="encoder", kind="hybrid",
            head=("ctc_head.", "lm_head.", "decoder.embed_tokens."),
            inputs="input_features", features="mel", nested="ConformerEncoderConfig",
        ),
    )
}  # fmt: skip

REFUSED = {
    "SEWDForCTC": "its blocks take query states from the block before and a convolution after the first one only",
    "MoonshineStreamingForConditionalGeneration": "each of its blocks has an attention window of its own",
    "ParakeetForRNNT": "foldray trains CTC and attention, not transducers; ParakeetForCTC folds",
    "ParakeetForTDT": "foldray trains CTC and attention, not transducers; ParakeetForCTC folds",
    "SpeechT5ForSpeechToText": "its blocks share one relative-position encoder with the text model",
}
"""Speech models whose blocks can't be repeated as they are, and why."""


def family_of(model: nn.Module) -> Family:
    """The family of a stock or folded model. Raises UserError, with the reason, for a class that can't be folded."""
    name = type(model).__name__.removeprefix("FSDP")  # fully_shard() gives a model a class of its own
    for family in FAMILIES.values():
        if name == family.model:
            return family
    kin = family_of_config(getattr(model, "config", None))
    if kin and name not in REFUSED:
        raise UserError(name, f"can't be folded: foldray folds the whole recogniser; give {kin.model}")
    known = ", ".join(family.model for family in FAMILIES.values())
    raise UserError(
        name, f"can't be folded: {REFUSED.get(name, 'foldray does not know its layout')}; families: {known}"
    )


def family_of_config(config: Any) -> Family | None:
    """The family that a transformers configuration belongs to; None where foldray folds none of that kind."""
    return next((family for family in FAMILIES.values() if family.config == type(config).__name__), None)


def transformers_class(name: str) -> Any:
    """A class of transformers, or of foldray's own hybrid, by name; the library's progress bars stay off."""
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    own = importlib.import_module(
        "foldray.models.conformer"
    )  # before any AutoConfig: it registers its configuration there
    return getattr(own if name in own.__all__ else library, name)
