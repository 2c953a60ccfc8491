"""Whisper in the layouts of onnx-asr (an encoder and a merged decoder) and of sherpa-onnx (a cache of a fixed size).

In both the encoder also projects its states to the keys and values of every decoder block, which are the same for all
tokens. What `generate` does with scores is part of the decoder's graph, as the runtimes only take the best one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foldray.models.families._mel import HOP
from foldray.models.features import WINDOW_STEP
from foldray.models.tokenizer import Tokenizer
from foldray.models.windows import takes_audio_window

UNWANTED = -1e9
"""Added to the score of a token that must not be chosen."""
STEP = WINDOW_STEP // HOP
"""Log-mel windows that windows of the audio's length are a multiple of."""


# --- Encoder ---------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Log-mel windows (B, F, T) to keys and values (L, B, T', D) of the cross-attention of L decoder blocks."""

    def __init__(self, stock: Any, *, padded_with_zeros: bool) -> None:
        """Take a stock Whisper, and whether silence behind the audio is zeros (sherpa-onnx) or the extractor's."""
        super().__init__()
        self.encoder, self.decoder = stock.model.encoder, stock.model.decoder
        self._zeros, self._audio_window = padded_with_zeros, takes_audio_window(stock.config)
        self._most = 2 * stock.config.max_source_positions

    def forward(self, mel_BFT: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.encoder
        hidden_BDT = functional.gelu(encoder.conv1(self._window(mel_BFT)))
        hidden_BTD = functional.gelu(encoder.conv2(hidden_BDT)).transpose(1, 2)
        hidden_BTD = hidden_BTD + encoder.embed_positions.weight[: hidden_BTD.shape[1]]
        for layer in encoder.layers:
            hidden_BTD = _attend_itself(layer, hidden_BTD, None, lambda key, value: (key, value))
            hidden_BTD = _feed_forward(layer, hidden_BTD)
        hidden_BTD = encoder.layer_norm(hidden_BTD)
        projections = [(layer.encoder_attn.k_proj, layer.encoder_attn.v_proj) for layer in self.decoder.layers]
        keys = torch.stack([key(hidden_BTD) for key, _ in projections])
        return keys, torch.stack([value(hidden_BTD) for _, value in projections])

    def _window(self, mel_BFT: Tensor) -> Tensor:
        """The window that foldray gives the encoder: as long as the audio in whole steps, or the stock length."""
        floor = (mel_BFT.max() - 2).clamp(min=-1.5)  # of the extractor: 8 decades below the loudest, scaled
        if self._zeros:
            silent_T = (mel_BFT == 0).all(1).all(0)
            mel_BFT = torch.where(silent_T, floor, mel_BFT)
        else:
            silent_T = (mel_BFT <= floor + 1e-4).all(1).all(0)
        padding_BFT = floor.expand(mel_BFT.shape[0], mel_BFT.shape[1], self._most)
        mel_BFT = torch.cat([mel_BFT, padding_BFT], 2)[:, :, : self._most]
        if not self._audio_window:
            return mel_BFT
        numbers_T = torch.arange(1, silent_T.shape[0] + 1)
        # The extractor's window over the end of the audio is not silent, and begins no frame of its own.
        heard = torch.where(silent_T, 0, numbers_T).max() - (0 if self._zeros else 1)
        length = ((heard + STEP - 1) // STEP * STEP).clamp(min=STEP, max=self._most).item()
        torch._check(length >= STEP)
        torch._check(length <= self._most)
        return mel_BFT[:, :, :length]


class StackedEncoder(nn.Module):
    """The encoder of onnx-asr, which passes one tensor (B, 2L, T', D) on to the decoder unread."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.encoder = Encoder(stock, padded_with_zeros=False)

    def forward(self, mel_BFT: Tensor) -> Tensor:
        return torch.cat(self.encoder(mel_BFT)).transpose(0, 1)


# --- Decoder ---------------------------------------------------------------------------------------


def _attention(block: Any, query_BUD: Tensor, key_BKD: Tensor, value_BKD: Tensor, mask_UK: Tensor | None) -> Tensor:
    """Multi-head attention as the library's eager one; the mask is added to the scores."""

    def heads(states_BND: Tensor) -> Tensor:
        split_BNHE: Tensor = states_BND.unflatten(2, (block.num_heads, block.head_dim))
        return split_BNHE.transpose(1, 2)

    scores_BHUK = heads(block.q_proj(query_BUD) * block.scaling) @ heads(key_BKD).transpose(2, 3)
    weights_BHUK = (scores_BHUK if mask_UK is None else scores_BHUK + mask_UK).softmax(-1)
    attended_BUD: Tensor = block.out_proj((weights_BHUK @ heads(value_BKD)).transpose(1, 2).flatten(2))
    return attended_BUD


def _attend_itself(layer: Any, hidden_BUD: Tensor, mask_UK: Tensor | None, remember: Any) -> Tensor:
    """Self-attention over what `remember` makes of the new keys and values."""
    normed_BUD = layer.self_attn_layer_norm(hidden_BUD)
    key_BKD, value_BKD = remember(layer.self_attn.k_proj(normed_BUD), layer.self_attn.v_proj(normed_BUD))
    return hidden_BUD + _attention(layer.self_attn, normed_BUD, key_BKD, value_BKD, mask_UK)


def _feed_forward(layer: Any, hidden_BUD: Tensor) -> Tensor:
    normed_BUD = layer.final_layer_norm(hidden_BUD)
    added_BUD: Tensor = layer.fc2(layer.activation_fn(layer.fc1(normed_BUD)))
    return hidden_BUD + added_BUD


class _Decoder(nn.Module):
    """What both decoders share: the blocks, and the rules of `generate`."""

    def __init__(self, stock: Any, tokenizer: Tokenizer) -> None:
        super().__init__()
        assert tokenizer.special is not None
        self.decoder, self.head = stock.model.decoder, stock.proj_out
        self._prompt, self._most = len(tokenizer.special.prompts[""]), tokenizer.special.most
        self.always, self.first, self.last = _rules(stock, tokenizer)

    def decode(
        self, ids_BU: Tensor, places_U: Tensor, mask_UK: Tensor, remember: Any, keys: Any, values: Any
    ) -> Tensor:
        """Scores (B, U, V) of the tokens after those at some places; keys and values are the encoder's, by block."""
        places_U = places_U.clamp(max=self._most - 1)
        hidden_BUD = self.decoder.embed_tokens(ids_BU) + self.decoder.embed_positions.weight[places_U]
        for i, layer in enumerate(self.decoder.layers):
            hidden_BUD = _attend_itself(layer, hidden_BUD, mask_UK, lambda key, value, i=i: remember(i, key, value))
            normed_BUD = layer.encoder_attn_layer_norm(hidden_BUD)
            hidden_BUD = hidden_BUD + _attention(layer.encoder_attn, normed_BUD, keys[i], values[i], None)
            hidden_BUD = _feed_forward(layer, hidden_BUD)
        scores_BUV: Tensor = self.head(self.decoder.layer_norm(hidden_BUD))
        begins, places_U1 = self._prompt - 1, places_U[:, None]
        scores_BUV = scores_BUV + (places_U1 >= begins) * self.always + (places_U1 == begins) * self.first
        return scores_BUV + (places_U1 >= self._most - 1) * self.last


def _rules(stock: Any, tokenizer: Tokenizer) -> list[Tensor]:
    """What is added to scores always, to those of the first token, and at the decoder's last place, (V,) each."""
    assert tokenizer.special is not None
    options, size = stock.generation_config, stock.config.vocab_size
    always, first, last = torch.zeros(size), torch.zeros(size), torch.full((size,), UNWANTED)
    always[_known(options.suppress_tokens, size)] = UNWANTED
    always[len(tokenizer) :] = UNWANTED
    first[_known(options.begin_suppress_tokens, size)] = UNWANTED
    last[tokenizer.special.end] = 0
    return [always, first, last]


def _known(tokens: list[int] | None, size: int) -> list[int]:
    """The tokens that the model has: lists of suppressed ones are copied between vocabularies."""
    return [token for token in tokens or [] if 0 <= token < size]


class GrowingDecoder(_Decoder):
    """The merged decoder of onnx-asr: its cache (B, 2L, P, D) grows with each call, and has no rows before the first.

    onnx-asr always gives a prompt of four tokens: start, language, task, "no times". An English-only model was trained
    on the first and the last of them, so the other two are hidden from it; asked for the language, it ends the text.
    """

    def forward(self, ids_BU: Tensor, cross_BLTD: Tensor, has_cache: Tensor, cache_BLPD: Tensor) -> Any:  # noqa: ARG002
        batch, length, past = *ids_BU.shape, cache_BLPD.shape[2]
        layers, width = cache_BLPD.shape[1], cache_BLPD.shape[3]
        shape = torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in (batch, layers, past, width)])
        cache_BLPD = torch.onnx.ops.symbolic(
            "Reshape", (cache_BLPD, shape), {"allowzero": 1}, dtype=torch.float32, shape=(batch, layers, past, width)
        )
        half = layers // 2
        new: list[Tensor] = [ids_BU] * layers

        def remember(i: int, key_BUD: Tensor, value_BUD: Tensor) -> tuple[Tensor, Tensor]:
            new[i] = torch.cat([cache_BLPD[:, i], key_BUD], 1)
            new[half + i] = torch.cat([cache_BLPD[:, half + i], value_BUD], 1)
            return new[i], new[half + i]

        rows_U, keys_K = torch.arange(length) + past, torch.arange(length + past)
        visible_UK = keys_K <= rows_U[:, None]
        is_start_U1 = (rows_U == 0)[:, None]
        if self._prompt == 2:
            visible_UK = visible_UK & ((keys_K < 1) | (keys_K > 2))
            rows_U = (rows_U - 2).clamp(min=0)
        mask_UK = torch.where(visible_UK, 0.0, UNWANTED)
        cross = cross_BLTD.unbind(1)
        scores_BUV = self.decode(ids_BU, rows_U, mask_UK, remember, cross[:half], cross[half:])
        if self._prompt == 2:
            scores_BUV = torch.where(is_start_U1, self.last, scores_BUV)
        return scores_BUV, torch.stack(new, 1)


class FixedDecoder(_Decoder):
    """The decoder of sherpa-onnx: caches (L, B, C, D) have a place for each position; `offset` of them are filled."""

    def forward(
        self, ids_BU: Tensor, keys_LBCD: Tensor, values_LBCD: Tensor, cross_key_LBTD: Tensor, cross_value_LBTD: Tensor,
        offset_1: Tensor,
    ) -> Any:  # fmt: skip
        length, places_C = ids_BU.shape[1], torch.arange(keys_LBCD.shape[2])
        rows_U = torch.arange(length) + offset_1
        from_C = places_C - offset_1
        is_new_C1 = ((from_C >= 0) & (from_C < length))[:, None]
        source_C = from_C.clamp(min=0).minimum(torch.scalar_tensor(length - 1, dtype=torch.int64))
        new_keys, new_values = [], []

        def remember(i: int, key_BUD: Tensor, value_BUD: Tensor) -> tuple[Tensor, Tensor]:
            new_keys.append(torch.where(is_new_C1, key_BUD[:, source_C], keys_LBCD[i]))
            new_values.append(torch.where(is_new_C1, value_BUD[:, source_C], values_LBCD[i]))
            return new_keys[-1], new_values[-1]

        mask_UC = torch.where(places_C <= rows_U[:, None], 0.0, UNWANTED)
        cross = cross_key_LBTD.unbind(0), cross_value_LBTD.unbind(0)
        scores_BUV = self.decode(ids_BU, rows_U, mask_UC, remember, *cross)
        return scores_BUV, torch.stack(new_keys), torch.stack(new_values)
