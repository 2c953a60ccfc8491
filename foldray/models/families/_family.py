"""The description of a model family: names in its stock transformers classes, and what differs in its inputs."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foldray.folding.plan import FoldPlan
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


def _all_samples(model: FoldedModel, num_samples: int) -> int:  # noqa: ARG001
    return num_samples


def _foldable(config: "PreTrainedConfig") -> str | None:  # noqa: ARG001
    return None


def load_class(module: str, name: str) -> "type[Any]":
    """Import a class, with the progress bars of transformers disabled."""
    importlib.import_module("transformers").logging.disable_progress_bar()
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
        fixed_length: Every utterance is padded to the extractor's own length, without a mask (Whisper).
        ctc_head: Attribute of the CTC head; None for a model without CTC.
        attention: Whether the model has a decoder that is trained with cross-entropy.
        decoder: Attribute path to a stock decoder, whose inputs folding repeats for every depth.
        head: Prefixes of state dict keys that depend on the vocabulary.
        depth_field: Configuration field that counts the blocks.
        nested: Whether the encoder's configuration is nested in `encoder_config`.
        carried: Keyword in which blocks pass something on besides hidden states.
        first_block_only: Attribute paths of submodules that stock models have in the first block only.
        surplus: Prefixes of keys that a checkpoint may hold and recognition does not need.
        unused: Prefixes of parameters that no forward pass reaches.
        front: Prefixes of what turns audio into frames, before the blocks.
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
    fixed_length: bool = False
    ctc_head: str | None = "lm_head"
    attention: bool = False
    decoder: str | None = None
    head: tuple[str, ...] = ("lm_head.",)
    depth_field: str = "num_hidden_layers"
    nested: bool = False
    carried: str | None = None
    first_block_only: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    front: tuple[str, ...] = ("encoder.subsampling.",)
    module: str = "transformers"

    @property
    def ctc(self) -> bool:
        """Whether the model has CTC outputs."""
        return self.ctc_head is not None

    @property
    def model_class(self) -> "type[PreTrainedModel]":
        """The stock model class."""
        return load_class(self.module, self.model)

    @property
    def config_class(self) -> "type[PreTrainedConfig]":
        """The stock configuration class."""
        return load_class(self.module, self.config)

    def tokens(self, vocab_size: int) -> dict[str, int]:
        """Return the configuration's token fields: blank is 0; a decoder's start and end token comes last."""
        if not self.attention:
            return {"vocab_size": vocab_size, "pad_token_id": 0}
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id"), vocab_size)
        return {"vocab_size": vocab_size + 1, "pad_token_id": 0, **ends}

    def check_plan(self, plan: FoldPlan) -> None:
        """Check that every path begins where blocks need it. Raises ValueError naming the field."""
        if self.carried and any(path[0] != 0 for path in plan.all_paths()):
            raise ValueError(f"paths: {self.name}'s first layer makes the {self.carried}; begin every path with 0")

    def depth_config(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """Return the part of a configuration that counts the blocks."""
        return config.encoder_config if self.nested else config
