"""The description of a model family: names in its stock transformers classes, and what differs in its inputs."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foldray.folding.plan import FoldPlan, check_pairs
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


def _all_samples(model: FoldedModel, num_samples: int) -> int:  # noqa: ARG001
    return num_samples


def _foldable(config: "PreTrainedConfig") -> str | None:  # noqa: ARG001
    return None


def load_class(module: str, name: str) -> "type[Any]":
    """Import a class, with the progress bars and warnings of transformers disabled."""
    logging = importlib.import_module("transformers").logging
    logging.disable_progress_bar()
    if not os.environ.get("TRANSFORMERS_VERBOSITY"):
        logging.set_verbosity_error()
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


@dataclass(frozen=True)
class Family:
    """One family of stock models: where its parts are and how audio gets in.

    In the functions, `model` is a stock or folded model (possibly on the meta device), `config` its transformers
    configuration, and `samples` counts samples at 16 kHz.

    Attributes:
        name: The value of `model.family`; that of the family's file with hyphens.
        model, config, extractor: Class names in `module` (the extractor's in transformers).
        encoder: Attribute path from the model to the module whose `layers` are the blocks.
        frames: (model, samples as an integer tensor) -> valid output frames, as the model's own masks count them.
        input_shape: (model, samples) -> shape of the audio input for one utterance.
        extractor_options: config -> options of the family's usual feature extractor.
        whole_samples: (model, samples) -> samples to keep, so that no output depends on the length of the batch.
        mel_bins: config -> log-mel bins of one 10 ms window, where training masks them; None otherwise.
        refusal: config -> reason why this configuration can't be folded, or None.
        inputs: Name of the model's audio input.
        mask: Name of the mask of the audio input.
        fixed_length: Every utterance is padded to the extractor's own length, without a mask (Whisper).
        ctc_head: Attribute of the CTC head; None for a model without CTC.
        attention: Whether the model has a decoder that is trained with cross-entropy.
        decoder: Attribute path to a stock decoder, whose inputs folding repeats for every depth.
        head: Prefixes of state dict keys that depend on the vocabulary.
        depth_field: Configuration field that counts the blocks.
        decoder_depth_field: Configuration field that counts the blocks of `decoder`; None if it can't be folded.
        nested: Whether the encoder's configuration is nested in another one.
        nest: Field with a nested encoder's configuration.
        decoder_nest: Field with a nested decoder's configuration; None if the decoder's fields are not nested.
        carried: Keyword in which blocks pass something on besides hidden states.
        ends_early: Whether what follows the blocks needs nothing of the batch but the states.
        first_block_only: Attribute paths of submodules that stock models have in the first block only.
        surplus: Prefixes of keys that a checkpoint may hold and recognition does not need.
        unused: Prefixes of parameters that no forward pass reaches.
        front: Prefixes of what turns audio into frames, before the blocks.
        in_runtimes: Whether onnx-asr and sherpa-onnx read its decoder; of CTC models they read all.
        untrained: Why the training pipeline can't train the family, which folds in Python only; None if it can.
        module: The module with the model's and the configuration's class.
    """

    name: str
    model: str
    config: str
    extractor: str
    encoder: str
    frames: Callable[[FoldedModel, "Tensor"], "Tensor"]
    input_shape: Callable[[FoldedModel, int], tuple[int, ...]]
    extractor_options: Callable[["PreTrainedConfig"], dict[str, object]]
    whole_samples: Callable[[FoldedModel, int], int] = _all_samples
    mel_bins: Callable[["PreTrainedConfig"], int] | None = None
    refusal: Callable[["PreTrainedConfig"], str | None] = _foldable
    inputs: str = "input_values"
    mask: str = "attention_mask"
    fixed_length: bool = False
    ctc_head: str | None = "lm_head"
    attention: bool = False
    decoder: str | None = None
    head: tuple[str, ...] = ("lm_head.",)
    depth_field: str = "num_hidden_layers"
    decoder_depth_field: str | None = None
    nested: bool = False
    nest: str = "encoder_config"
    decoder_nest: str | None = None
    carried: str | None = None
    ends_early: bool = True
    first_block_only: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    front: tuple[str, ...] = ("encoder.subsampling.",)
    in_runtimes: bool = False
    untrained: str | None = None
    module: str = "transformers"

    @property
    def ctc(self) -> bool:
        """Whether the model has CTC outputs."""
        return self.ctc_head is not None

    @property
    def seq2seq(self) -> bool:
        """Whether text comes from a stock decoder alone, whose tokens are those of the checkpoint."""
        return self.attention and not self.ctc

    @property
    def model_class(self) -> "type[PreTrainedModel]":
        """The stock model class."""
        return load_class(self.module, self.model)

    @property
    def config_class(self) -> "type[PreTrainedConfig]":
        """The stock configuration class."""
        return load_class(self.module, self.config)

    def tokens(self, vocab_size: int) -> dict[str, Any]:
        """Return the configuration's token fields: blank is 0; a decoder's start and end token comes last."""
        if not self.attention:
            return {"vocab_size": vocab_size, "pad_token_id": 0}
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id"), vocab_size)
        fields = {"vocab_size": vocab_size + 1, "pad_token_id": 0, **ends}
        return fields | ({self.decoder_nest: fields} if self.decoder_nest else {})

    def check_plan(self, plan: FoldPlan, decoder: FoldPlan | None = None) -> None:
        """Check that every path begins where blocks need it, and has one in the decoder. Raises ValueError."""
        if decoder and not self.decoder_depth_field:
            raise ValueError(f"decoder: {self.name} has no decoder that can be folded; remove it")
        if decoder:
            check_pairs(plan, decoder)
        if self.carried and any(path[0] != 0 for path in plan.all_paths()):
            raise ValueError(f"paths: {self.name}'s first layer makes the {self.carried}; begin every path with 0")

    def set_layers(self, config: "PreTrainedConfig", layers: int, decoder_layers: int | None = None) -> None:
        """Write into a configuration how many blocks the encoder has, and the decoder if it is folded."""
        setattr(self.depth_config(config), self.depth_field, layers)
        if decoder_layers is not None and self.decoder_depth_field:
            setattr(config, self.decoder_depth_field, decoder_layers)

    def depth_config(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """Return the part of a configuration that counts the blocks."""
        return getattr(config, self.nest) if self.nested else config
