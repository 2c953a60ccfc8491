"""The hybrid CTC/attention Conformer of arXiv 2505.21237, built from stock transformers modules.

Encoder: `ParakeetEncoder`, the Conformer blocks of arXiv 2005.08100, under full 3x3 subsampling
convolutions as in ESPnet. Decoder: `Speech2TextDecoder`, pre-norm with sinusoidal positions.
"""

import math
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSpeechSeq2Seq,
    Cache,
    GenerationMixin,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Speech2TextConfig,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderSubsamplingConv2D
from transformers.models.speech_to_text.modeling_speech_to_text import Speech2TextDecoder
from transformers.utils.generic import ModelOutput, can_return_tuple

__all__ = ["ConformerConfig", "ConformerEncoderConfig", "ConformerForSpeech", "ConformerOutput", "check_one_depth"]

# --- Configuration ---------------------------------------------------------------------------------


@strict
class ConformerEncoderConfig(ParakeetEncoderConfig):
    """The stock encoder's fields with the defaults of arXiv 2505.21237; dropout as in ESPnet's Conformer recipes.

    scale_input stays on: ESPnet's relative positions multiply the input by sqrt(hidden_size) too.
    """

    model_type = "foldray-conformer-encoder"

    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 2048
    conv_kernel_size: int = 31
    subsampling_factor: int = 4
    dropout_positions: float | int = 0.1
    # A dropped shared layer would vanish from some of its uses only.
    layerdrop: float | int = 0.0


DECODER_FIELDS = (
    "vocab_size", "decoder_layers", "decoder_ffn_dim", "decoder_attention_heads", "dropout", "attention_dropout",
    "activation_dropout", "max_target_positions", "pad_token_id", "bos_token_id", "eos_token_id",
    "decoder_start_token_id",
)  # fmt: skip


@strict
class ConformerConfig(PreTrainedConfig):
    """Shape of the whole model; the defaults are the paper's.

    encoder_config: the encoder, as a configuration or a dictionary of its fields; its `hidden_size`
    is the decoder's too. vocab_size: all tokens, blank and start/end token included, for both heads.
    Token 0 is the CTC blank and the padding; the last one starts and ends a sentence, as in ESPnet,
    so `bos_token_id`, `eos_token_id` and `decoder_start_token_id` follow vocab_size and can't be set.
    dropout, attention_dropout, activation_dropout: of the decoder. max_target_positions: the longest
    sentence that can be generated, in tokens.
    """

    model_type = "foldray-conformer"
    sub_configs_defaults = {"encoder_config": ConformerEncoderConfig}  # type: ignore[dict-item]  # noqa: RUF012

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    vocab_size: int = 2000
    decoder_layers: int = 6
    decoder_ffn_dim: int = 2048
    decoder_attention_heads: int = 4
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_dropout: float | int = 0.1
    max_target_positions: int = 1024
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.initializer_range: float = self.encoder_config.initializer_range  # type: ignore[union-attr]
        self.bos_token_id = self.eos_token_id = self.decoder_start_token_id = self.vocab_size - 1

    def decoder_config(self) -> Speech2TextConfig:
        """Return the configuration of the stock decoder."""
        encoder: Any = self.encoder_config
        fields = {name: getattr(self, name) for name in DECODER_FIELDS}
        return Speech2TextConfig(d_model=encoder.hidden_size, init_std=encoder.initializer_range, **fields)


# --- Model -----------------------------------------------------------------------------------------


class FullSubsampling(ParakeetEncoderSubsamplingConv2D):
    """The stock subsampling and its masks with full convolutions where Parakeet has depthwise-separable ones."""

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList()
        for i in range(int(math.log2(config.subsampling_factor))):
            channels = self.channels if i else 1
            conv = nn.Conv2d(channels, self.channels, self.kernel_size, stride=self.stride, padding=self.padding)
            self.layers.extend([conv, nn.ReLU()])


@dataclass
class ConformerOutput(ModelOutput):
    """logits: (P*B, U, V) of the decoder; ctc_logits: (P*B, T', V); encoder_last_hidden_state: (P*B, T', D).

    P is the number of depths that the encoder runs (1 if it is not folded), U the number of target tokens. Rows are
    grouped by depth: the first B rows are the batch at the first depth.
    """

    logits: Tensor | None = None
    ctc_logits: Tensor | None = None
    cache: Cache | None = None
    encoder_last_hidden_state: Tensor | None = None


class ConformerForSpeech(PreTrainedModel, GenerationMixin):
    """Conformer encoder with a CTC head and an attention decoder over it (arXiv 2505.21237).

    The encoder may be folded. Losses are not computed here. Raises ValueError for a configuration
    whose `vocab_size` was changed afterwards, so that its start/end token is no longer the last.
    """

    config: ConformerConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config)
        if config.eos_token_id != config.vocab_size - 1:
            raise ValueError("vocab_size was changed; create a new ConformerConfig instead")
        encoder_config: Any = config.encoder_config
        self.encoder = ParakeetEncoder(encoder_config)
        self.encoder.subsampling = FullSubsampling(encoder_config)
        self.decoder = Speech2TextDecoder(config.decoder_config())
        self.ctc_head = nn.Linear(encoder_config.hidden_size, config.vocab_size)
        self.lm_head = nn.Linear(encoder_config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embedding."""
        embedding: nn.Module = self.decoder.embed_tokens
        return embedding

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
    ) -> ConformerOutput:
        """Encode, and decode if there are decoder inputs.

        Args:
            input_features: Log-mel windows (B, T, F).
            attention_mask: (B, T), 1 for valid windows.
            decoder_input_ids: (B, U), start/end token first, padded at the end with token 0; without them `logits`
                is None.
            encoder_outputs: Outputs of `encoder` to use instead of running it; `ctc_logits` is then None.
            cache, use_cache: The decoder's key-value cache, as in the library.

        Returns:
            Outputs with P*B rows for a folded encoder, all utterances of the shallowest depth first; tokens and mask
            are repeated for each depth.

        Raises:
            ValueError: The encoder's rows are not a multiple of the tokens' rows.
        """
        ctc_logits_NTV = logits_NUV = None
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_features, attention_mask=attention_mask)
            ctc_logits_NTV = self.ctc_head(encoder_outputs.last_hidden_state)
        hidden_NTD: Any = encoder_outputs.last_hidden_state
        if decoder_input_ids is not None:
            decoded = self.decoder(
                input_ids=_repeat(decoder_input_ids, len(hidden_NTD)),
                encoder_hidden_states=hidden_NTD,
                encoder_attention_mask=self._frame_mask(attention_mask, hidden_NTD),
                cache=cache,
                use_cache=use_cache,
            )
            logits_NUV = self.lm_head(decoded.last_hidden_state)
            cache = decoded.cache
        return ConformerOutput(logits_NUV, ctc_logits_NTV, cache, hidden_NTD)

    def _frame_mask(self, attention_mask_BT: Tensor | None, hidden_NTD: Tensor) -> Tensor | None:
        """(P*B, T'), true for the frames that hold speech: the encoder's own count of them."""
        if attention_mask_BT is None:
            return None
        mask_BT = self.encoder._get_output_attention_mask(attention_mask_BT, target_length=hidden_NTD.shape[1])
        return _repeat(mask_BT, len(hidden_NTD))

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in the library. Raises ValueError for a folded encoder that runs several depths."""
        stock: Any = super()
        inputs: dict[str, Any] = stock.prepare_inputs_for_generation(*args, **kwargs)
        check_one_depth(inputs["encoder_outputs"].last_hidden_state, len(inputs["decoder_input_ids"]))
        return inputs


def check_one_depth(hidden_NTD: Tensor, batch: int) -> None:
    """Raise ValueError if a folded encoder ran more than one depth over a batch of so many utterances."""
    if len(hidden_NTD) != batch:
        raise ValueError(
            f"the encoder ran {len(hidden_NTD) // batch} depths and decoding takes one: "
            "call set_depths(model, [depth]), or load_model(uri, depth=depth)"
        )


def _repeat(rows_BX: Tensor, count: int) -> Tensor:
    """(P*B, X): all rows, once for each depth that the encoder ran."""
    depths, rest = divmod(count, len(rows_BX))
    if rest or not depths:
        raise ValueError(f"the encoder has {count} rows, not a multiple of the {len(rows_BX)} inputs")
    return rows_BX if depths == 1 else rows_BX.repeat(depths, 1)


AutoConfig.register(ConformerConfig.model_type, ConformerConfig)
AutoModelForSpeechSeq2Seq.register(ConformerConfig, ConformerForSpeech)
