"""Write stock checkpoints with random weights; load stock checkpoints strictly."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.config.model import ModelSpec
from foldray.errors import UserError, one_line
from foldray.models.families import FAMILIES, Family, family_of, transformers_class
from foldray.models.features import keep_extractor
from foldray.models.hub import copy_model
from foldray.models.processor import has_tokenizer, read_tokenizer, save_processor
from foldray.models.stock_config import is_hub_name, stock_config
from foldray.models.tokenizer import Tokenizer
from foldray.models.weight_files import check_finite, check_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BLANKS = 2 / 3
"""Share of frames in which the initial CTC head of a model from scratch predicts blank. If it happens to prefer the
word boundary, the model learns to emit that one between labels: a bad optimum that keeps it on CTC's plateau for
hundreds of steps, as with three of five random seeds on AN4 (docs/DESIGN.md, Training)."""


def write_random_checkpoint(
    spec: ModelSpec, num_layers: int, tokenizer: Tokenizer, seed: int, folder: Path, decoder_layers: int | None = None
) -> None:
    """Write a complete stock checkpoint with random weights: model, feature extractor and tokenizer."""
    config = stock_config(spec, num_layers, len(tokenizer), decoder_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[spec.family].model_class(config)
        initialise(model)
    model.save_pretrained(folder)
    save_processor(model, tokenizer, folder)


def initialise(model: PreTrainedModel) -> None:
    """Initialise weights for training from scratch, in place.

    Linear and convolution layers get torch's own initialisation, the CTC head a bias towards blank.
    transformers uses a standard deviation of 0.02 for any width, which slows down narrow models: on AN4 at
    width 96, 36 % WER after 60 epochs against 35 % after 25 with torch's.
    """
    for module in model.modules():
        parametrised = hasattr(module, "parametrizations")
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and not parametrised:
            module.reset_parameters()
    family = family_of(model)
    if family.ctc_head:
        head: Any = model.get_submodule(family.ctc_head)
        with torch.no_grad():
            head.bias[0] = math.log((len(head.bias) - 1) * BLANKS / (1 - BLANKS))


def load_stock(
    family: Family, checkpoint: str, config: "PreTrainedConfig", seed: int, tokenizer: Tokenizer | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """Load a stock model; returns it with the keys of its head (and mask vector) that are re-initialised.

    Args:
        tokenizer: The target; a head that was trained for another tokenizer is re-initialised.

    Raises:
        UserError: Any other key is missing, misshapen or unexpected.
    """
    opened = nullcontext(copy_model(checkpoint)) if is_hub_name(checkpoint) else storage.local_folder(checkpoint)
    with opened as source, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a re-initialised head is the same in every process
        model, report = from_pretrained(family, str(source), config, checkpoint)
        keep_extractor(model, family, str(source))
        fresh = _check_report(family, report, checkpoint)
        same_size = not any(key.startswith(family.head) for key in fresh)
        if tokenizer and not family.seq2seq and same_size and _written_in(str(source)) not in (None, tokenizer):
            fresh = [*fresh, *_renew_head(model, family)]
    return model, fresh


def _written_in(source: str) -> Tokenizer | None:
    """A checkpoint's tokenizer, where foldray or wav2vec 2.0 wrote it."""
    try:
        return read_tokenizer(source) if has_tokenizer(source) else None
    except UserError:  # a vocabulary for each of several languages
        return None


def _renew_head(model: Any, family: Family) -> list[str]:
    for name, module in model.named_modules():
        if f"{name}." in family.head:
            module.reset_parameters()
    return [key for key in model.state_dict() if key.startswith(family.head)]


def from_pretrained(
    family: Family,
    folder: str,
    config: "PreTrainedConfig",
    origin: str,
    where: str = "model.checkpoint",
    state: dict[str, Tensor] | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a float32 model from safetensors in a local folder, with its load report.

    Args:
        origin: Where the folder was copied from, for messages.
        where: The field that errors name.
        state: Weights to use instead of those in the folder.

    Raises:
        UserError: The weights are not what `check_weights` allows, do not load, or are not finite.
    """
    if state is None:
        check_weights(family, Path(folder), config, origin, where)
    try:
        model, report = transformers_class(family.model).from_pretrained(
            None if state is not None else folder,
            state_dict=state,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(where, f"{origin} does not load: {one_line(error)}") from None
    check_finite(model, origin, where)
    return model, report


def _check_report(family: Family, report: dict[str, Any], checkpoint: str) -> list[str]:
    """Names of the head's re-initialised keys; anything else in the load report raises UserError."""
    misshapen = {str(entry[0]) for entry in report["mismatched_keys"]}
    missing = {str(key) for key in report["missing_keys"]} | misshapen
    surplus = {str(key) for key in report["unexpected_keys"] if not str(key).startswith(family.surplus)}
    head = {key for key in missing if key.startswith(family.head)}
    # The mask vector is only used in training and has no weights worth keeping.
    masks = {key for key in missing if key.endswith("masked_spec_embed")}
    for kind, keys in (("missing or misshapen", missing - head - masks), ("unexpected", surplus)):
        if keys:
            shown = ", ".join(sorted(keys)[:3])
            raise UserError("model.checkpoint", f"{checkpoint} has {len(keys)} {kind} keys, such as {shown}")
    return sorted(head | masks)
