"""Whisper's graphs written to files, as onnx-asr and sherpa-onnx name their inputs and outputs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldray.config.corpus import SAMPLE_RATE
from foldray.models.families._mel import HOP
from foldray.models.folded_model import FoldedModel
from foldray.models.onnx import FREE, save_graph
from foldray.models.runtimes.whisper import Encoder, FixedDecoder, GrowingDecoder, StackedEncoder
from foldray.models.tokenizer import SpecialTokens, Tokenizer


def write_merged(stock: FoldedModel, tokenizer: Tokenizer, encoder: Path, decoder: Path) -> None:
    """Write the two graphs of onnx-asr's Whisper layout."""
    config = stock.config
    mel = {"input_features": _mel_example(config, 2)}
    save_graph(StackedEncoder(stock), mel, [{0: FREE, 2: FREE}], ["last_hidden_state"], encoder)
    states = 2 * config.decoder_layers
    inputs = {
        "input_ids": torch.zeros(2, 3, dtype=torch.int64),
        "encoder_hidden_states": torch.randn(2, states, 50, config.d_model),
        "use_cache_branch": torch.tensor([True]),
        "past_key_values.self": torch.randn(2, states, 5, config.d_model),
    }
    sizes: list[dict[int, Any]] = [{0: FREE, 1: FREE}, {0: FREE, 2: FREE}, {}, {0: FREE, 2: FREE}]
    save_graph(GrowingDecoder(stock, tokenizer), inputs, sizes, ["logits", "present.self"], decoder)


def write_fixed(stock: FoldedModel, tokenizer: Tokenizer, encoder: Path, decoder: Path) -> None:
    """Write the two graphs of sherpa-onnx's Whisper layout; what it asks about the model is in the encoder's file."""
    config = stock.config
    layers, places, width = config.decoder_layers, config.max_target_positions, config.d_model
    save_graph(
        Encoder(stock, padded_with_zeros=True), {"mel": _mel_example(config, 1)}, [{2: FREE}],
        ["n_layer_cross_k", "n_layer_cross_v"], encoder, _facts(config, tokenizer),
    )  # fmt: skip
    inputs = {
        "tokens": torch.zeros(1, 3, dtype=torch.int64),
        "in_n_layer_self_k_cache": torch.zeros(layers, 1, places, width),
        "in_n_layer_self_v_cache": torch.zeros(layers, 1, places, width),
        "n_layer_cross_k": torch.randn(layers, 1, 50, width),
        "n_layer_cross_v": torch.randn(layers, 1, 50, width),
        "offset": torch.tensor([2]),
    }
    sizes: list[dict[int, Any]] = [{1: FREE}, {}, {}, {2: FREE}, {2: FREE}, {}]
    outputs = ["logits", "out_n_layer_self_k_cache", "out_n_layer_self_v_cache"]
    save_graph(FixedDecoder(stock, tokenizer), inputs, sizes, outputs, decoder)


def _mel_example(config: Any, batch: int) -> Tensor:
    """Noise, then silence as both runtimes write it behind audio."""
    mel_BFT = torch.rand(batch, config.num_mel_bins, 2 * SAMPLE_RATE // HOP)
    mel_BFT[:, :, 150:] = 0
    return mel_BFT


def _facts(config: Any, tokenizer: Tokenizer) -> dict[str, object]:
    """The metadata that sherpa-onnx reads; a token that a small tokenizer lacks is replaced by the end."""
    special: SpecialTokens | None = tokenizer.special
    assert special is not None
    ids, prompt = {token: i for i, token in enumerate(tokenizer.vocabulary)}, special.prompts[""]
    languages = {code: ids[1] for code, ids in special.prompts.items() if code}
    return {
        "model_type": "whisper-foldray", "n_mels": config.num_mel_bins, "n_text_layer": config.decoder_layers,
        "n_text_ctx": config.max_target_positions, "n_text_state": config.d_model, "n_vocab": config.vocab_size,
        "sot": prompt[0], "sot_sequence": ",".join(map(str, prompt[:-1])), "no_timestamps": prompt[-1],
        "eot": special.end, "blank_id": ids.get("Ġ", special.end), "is_multilingual": int(bool(languages)),
        "transcribe": ids.get("<|transcribe|>", special.end), "translate": ids.get("<|translate|>", special.end),
        "no_speech": ids.get("<|nospeech|>", ids.get("<|nocaptions|>", special.end)),
        "all_language_codes": ",".join(languages), "all_language_tokens": ",".join(map(str, languages.values())),
    }  # fmt: skip
