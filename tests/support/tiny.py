"""Tiny stock models with random weights, one for each family, and padded inputs for them."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from foldray import FoldPlan, fold
from foldray.config.corpus import SAMPLE_RATE
from foldray.config.model import ModelSpec
from foldray.models.families import FAMILIES, family_of
from foldray.models.features import build_extractor, extract_features, output_frames, whole_frames
from foldray.models.stock_config import stock_config
from foldray.models.tokenizer import Tokenizer

TOKENIZER = Tokenizer(["<pad>", "<unk>", "|", *"ABCDEF"])

_WAVEFORM = {
    "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 8, 4], "conv_stride": [5, 8, 8], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_STABLE = {**_WAVEFORM, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}
_FASTCONFORMER = {
    "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "conv_kernel_size": 9,
    "num_mel_bins": 40, "subsampling_factor": 4, "subsampling_conv_channels": 8,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "parakeet": ("parakeet", _FASTCONFORMER),
    "wav2vec2-bert": ("wav2vec2-bert", {
        "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "feature_projection_input_dim": 320,
        "conv_depthwise_kernel_size": 9, "apply_spec_augment": False,
    }),
    "wav2vec2": ("wav2vec2", _WAVEFORM),
    "wav2vec2-stable": ("wav2vec2", _STABLE),
    "hubert": ("hubert", _WAVEFORM),
    "hubert-stable": ("hubert", _STABLE),
    "wavlm": ("wavlm", _WAVEFORM),
    "wavlm-stable": ("wavlm", _STABLE),
    "data2vec-audio": ("data2vec-audio", {
        **{key: value for key, value in _WAVEFORM.items() if key != "num_conv_pos_embeddings"},
        "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5,
    }),
    "unispeech-sat": ("unispeech-sat", _WAVEFORM),
    "unispeech-sat-stable": ("unispeech-sat", _STABLE),
    "unispeech": ("unispeech", _WAVEFORM),
    "unispeech-stable": ("unispeech", _STABLE),
    "lasr": ("lasr", {
        "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "conv_kernel_size": 8,
        "num_mel_bins": 40, "subsampling_conv_channels": 8,
    }),
    "omniasr-ctc": ("omniasr-ctc", {
        **{key: value for key, value in _WAVEFORM.items() if key != "num_feat_extract_layers"},
    }),
    "wav2vec2-conformer": ("wav2vec2-conformer", {
        **_WAVEFORM, "feat_extract_norm": "layer", "conv_depthwise_kernel_size": 9,
    }),
    "wav2vec2-conformer-rotary": ("wav2vec2-conformer", {
        **_WAVEFORM, "feat_extract_norm": "layer", "conv_depthwise_kernel_size": 9,
        "position_embeddings_type": "rotary",
    }),
    "sew": ("sew", _WAVEFORM),
    "sew-layer-norm": ("sew", {**_WAVEFORM, "feat_extract_norm": "layer"}),
    "whisper": ("whisper", {
        "d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "decoder_layers": 2, "num_mel_bins": 80, "max_source_positions": 150,
        "max_target_positions": 20, "begin_suppress_tokens": None, "suppress_tokens": None,
    }),
    "moonshine": ("moonshine", {
        "hidden_size": 32, "intermediate_size": 64, "decoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2, "max_position_embeddings": 128,
    }),
    "speech-to-text": ("speech-to-text", {
        "d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "decoder_layers": 2, "input_feat_per_channel": 40, "conv_channels": 16,
        "max_source_positions": 400, "max_target_positions": 20,
    }),
    "cohere-asr": ("cohere-asr", {
        **_FASTCONFORMER, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 200,
    }),
    "canary": ("canary", {
        **_FASTCONFORMER, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 200,
    }),
    "conformer": ("conformer", {
        "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "conv_kernel_size": 9,
        "num_mel_bins": 40, "subsampling_conv_channels": 8, "decoder_layers": 2, "decoder_ffn_dim": 64,
        "decoder_attention_heads": 2, "max_target_positions": 50,
    }),
}  # fmt: skip


STRUCTURES = ("parakeet", "wav2vec2", "wav2vec2-stable", "whisper", "conformer")
"""One for each structure: relative attention and BatchNorm, norms after and before, a decoder, a hybrid."""


def families(names: Iterable[str] = CONFIGS) -> list[Any]:
    """Names as test parameters; all but one for each structure run in `make soak`."""
    return [name if name in STRUCTURES else pytest.param(name, marks=pytest.mark.soak) for name in names]


def crossed(cases: Mapping[str, Any], own: str, names: Iterable[str] = CONFIGS) -> list[Any]:
    """Pairs of a family and a case as test parameters: all cases for one family of each structure, `own` for the rest.

    What differs between cases (orders, ranks) is code that knows no family.
    """
    pairs = [(name, case) for name in names for case in (cases if name in STRUCTURES else (own,))]
    marks = {name: () if name in STRUCTURES else pytest.mark.soak for name, _ in pairs}
    return [pytest.param(name, cases[case], marks=marks[name], id=f"{case}-{name}") for name, case in pairs]


DECODERS = tuple(name for name, (family, _) in CONFIGS.items() if FAMILIES[family].decoder_depth_field)
"""Those whose decoder can be folded."""


def tiny_spec(name: str, decoder_layers: int | None = None) -> ModelSpec:
    family, config = CONFIGS[name]
    field = FAMILIES[family].decoder_depth_field
    return ModelSpec(family=family, config={**config, **({field: decoder_layers} if field and decoder_layers else {})})


def tiny_model(
    name: str, num_layers: int = 3, decoder_layers: int | None = None, vocabulary: int = len(TOKENIZER), **changes: Any
) -> PreTrainedModel:
    """A random model; changes are fields of its configuration, of which those that it has count."""
    spec = tiny_spec(name, decoder_layers)
    spec = spec.model_copy(update={"config": {key: changes.get(key, value) for key, value in spec.config.items()}})
    torch.manual_seed(0)
    model = FAMILIES[spec.family].model_class(stock_config(spec, num_layers, vocabulary))
    return model.eval()


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(seed)) * 0.1


def inputs_for(model: PreTrainedModel, waveforms: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Features of the waveforms, padded to the longest; for a model with a decoder also its tokens."""
    family = family_of(model)
    inputs = extract_features(model, build_extractor(model), [whole_frames(model, w.numpy()) for w in waveforms])
    if family.attention:
        inputs["decoder_input_ids"] = torch.tensor([[9, 3, 4, 5], [9, 6, 7, 8]] * len(waveforms))[: len(waveforms)]
    return inputs


def run(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """All logits of a model, (P*B, …); those of a hybrid's two heads are concatenated."""
    output = model(**inputs)
    if "ctc_logits" not in output:
        return output.logits
    return torch.cat([output.logits.flatten(1), output.ctc_logits.flatten(1)], 1)


def frames_for(model: PreTrainedModel, waveforms: list[torch.Tensor]) -> list[int]:
    return output_frames(model, [len(w) for w in waveforms])


def folded(name: str, plan: FoldPlan, decoder: FoldPlan | None = None) -> PreTrainedModel:
    """A tiny folded model whose private parts no longer have their initial values."""
    model = fold(tiny_model(name, plan.num_layers, decoder.num_layers if decoder else None), plan, decoder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".private." in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def without_dropout(model: torch.nn.Module) -> None:
    """No dropout and no masks; so no gradient for the vector that masked frames get."""
    for key, parameter in model.named_parameters():
        if key.endswith("masked_spec_embed"):
            parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "dropout_positions"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    config = getattr(model.config, "encoder_config", model.config)
    config.mask_time_prob = config.mask_feature_prob = 0.0
