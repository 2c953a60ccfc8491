"""Stock checkpoints: written with random weights, or read with a strict report and cut down to a seed."""

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from foldray import storage
from foldray.data.text import Units
from foldray.errors import UserError
from foldray.folding.seed import Method, check_seed
from foldray.models import FAMILIES, Family
from foldray.plan import FoldPlan
from foldray.processor import (
    SUBWORDS_FILE,
    VOCABULARY_FILE,
    keep_extractor,
    read_units,
    save_processor,
    transformers_class,
)
from foldray.spec import ModelSpec

# --- Building --------------------------------------------------------------------------------------


def stock_config(spec: ModelSpec, num_layers: int, num_units: int) -> Any:
    """The transformers configuration of the seed, from the family's defaults and `model.config`.

    Raises UserError naming the field that transformers does not know or refuses.
    """
    family = FAMILIES[spec.family]
    config_class = transformers_class(family.config)
    fields = _place(family, spec.config, config_class())
    (fields.get("encoder_config", fields))[family.depth_field] = num_layers
    fields |= _tokens(family, num_units)
    try:
        return config_class(**fields)
    except Exception as error:
        raise UserError("model.config", f"transformers refuses it: {' '.join(str(error).split())[:160]}") from None


def _tokens(family: Family, num_units: int) -> dict[str, int]:
    """Blank comes first; behind a decoder's units stands one token more, which starts and ends a sentence."""
    if family.kind == "ctc":
        return {"vocab_size": num_units, "pad_token_id": 0}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id"), num_units)
    return {"vocab_size": num_units + 1, "pad_token_id": 0, **ends}


_SETTLED = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def _place(family: Family, fields: dict[str, Any], like: Any) -> dict[str, Any]:
    """Fields where the configuration has them; in a nested one the encoder's go inside, a decoder's beside it.

    Raises UserError for a field that is unknown, or that counts the blocks.
    """
    inner = _known(like.encoder_config) if family.nested else []
    outer = _known(like) if not family.nested or family.kind == "hybrid" else []
    for name in fields:
        if name == family.depth_field:
            raise UserError(f"model.config.{name}", "say fold.num_layers instead")
        if name in _SETTLED:
            raise UserError(f"model.config.{name}", "is settled by foldray; leave it out")
        if name not in (*inner, *outer):
            close = difflib.get_close_matches(name, [*inner, *outer], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"model.config.{name}", f"{type(like).__name__} has no such field{hint}")
    placed: dict[str, Any] = {name: value for name, value in fields.items() if name in outer}
    if family.nested:
        placed["encoder_config"] = {name: value for name, value in fields.items() if name in inner}
    return placed


def _known(config: Any) -> list[str]:
    return [name for name in vars(config) if not name.startswith("_") and name != "encoder_config"]


def write_random_checkpoint(spec: ModelSpec, num_layers: int, units: Units, seed: int, folder: Path) -> None:
    """A complete stock checkpoint with random weights: model, feature extractor and tokenizer."""
    config = stock_config(spec, num_layers, len(units))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers_class(FAMILIES[spec.family].model)(config)
        initialise_for_width(model)
    model.save_pretrained(folder)
    save_processor(model, units, folder)


def initialise_for_width(model: nn.Module) -> None:
    """torch's own initialisation of linear and convolution layers, in place.

    transformers draws with a standard deviation of 0.02 whatever the width, which starves narrow
    models: on AN4 at width 96, 36 % WER after 60 epochs against 35 % after 25 with torch's.
    """
    for module in model.modules():
        parametrised = hasattr(module, "parametrizations")
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and not parametrised:
            module.reset_parameters()


# --- Loading ---------------------------------------------------------------------------------------


def load_stock(
    family: Family, checkpoint: str, config: Any, seed: int, units: Units | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """A stock model, and the keys of its head (and mask vector) that start anew; others missing or surplus raise.

    units: what the model is to write; a head that was made for other units starts anew.
    """
    opened = nullcontext(checkpoint) if is_hub_name(checkpoint) else storage.local_folder(checkpoint)
    with opened as source, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a head that starts anew starts the same in every process
        model, report = from_pretrained(family, str(source), config, checkpoint)
        keep_extractor(model, family, str(source))
        fresh = _check_report(family, report, checkpoint)
        same_size = not any(key.startswith(family.head) for key in fresh)
        if units and same_size and _written_in(str(source)) not in (None, units):
            fresh = [*fresh, *_renew_head(model, family)]
    return model, fresh


def _written_in(source: str) -> Units | None:
    """The units that a checkpoint's tokenizer says, where it is one of foldray's or of wav2vec 2.0's kind."""
    file = cached_file(source, SUBWORDS_FILE, **QUIET) or cached_file(source, VOCABULARY_FILE, **QUIET)
    try:
        return read_units(str(Path(file).parent)) if file else None
    except TypeError:  # a vocabulary for each of several languages
        return None


QUIET: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


def _renew_head(model: Any, family: Family) -> list[str]:
    for name, module in model.named_modules():
        if f"{name}." in family.head:
            module.reset_parameters()
    return [key for key in model.state_dict() if key.startswith(family.head)]


def check_plan(available: int, plan: FoldPlan, method: Method) -> None:
    """Raise UserError if a checkpoint of so many layers has no seed for a plan."""
    try:
        check_seed(available, plan, method)
    except ValueError as error:
        raise UserError("fold.num_layers" if available < plan.num_layers else "model.seed_layers", str(error)) from None


@contextmanager
def fold_errors() -> Iterator[None]:
    """Make one line that names the field of what a plan asks of a model in vain."""
    try:
        yield
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise UserError(f"fold.{field}", problem) from None


def check_model(spec: ModelSpec, plan: FoldPlan) -> None:
    """Raise UserError for what can't be trained: a family without CTC, a configuration transformers refuses, a
    checkpoint that does not open. Loads no weights.
    """
    if FAMILIES[spec.family].kind == "attention":
        name = FAMILIES[spec.family].model
        raise UserError(
            "model.family", f"{spec.family} has no CTC, which foldray trains; fold {name} with fold_checkpoint"
        )
    stock_config(spec, plan.num_layers, num_units=1)
    checkpoint = find_checkpoint(spec.checkpoint)
    if checkpoint:
        config = checkpoint_config(spec, checkpoint)
        available = getattr(getattr(config, "encoder_config", config), FAMILIES[spec.family].depth_field)
        check_plan(available, plan, spec.seed_layers)


@overload
def find_checkpoint(checkpoint: str) -> str: ...
@overload
def find_checkpoint(checkpoint: None) -> None: ...
def find_checkpoint(checkpoint: str | None) -> str | None:
    """Where a checkpoint is: an absolute folder, a URI or a hub name. Raises UserError for a folder not there."""
    if not checkpoint or "://" in checkpoint:
        return checkpoint
    local = Path(checkpoint).expanduser()
    if local.is_dir():
        return str(local.absolute())
    if checkpoint.startswith(("/", ".", "~")):
        raise UserError("model.checkpoint", f"{checkpoint} is not there; give a folder, a URI or a hub name")
    return checkpoint


def is_hub_name(checkpoint: str) -> bool:
    """Whether `find_checkpoint` left it to the hub."""
    return "://" not in checkpoint and not checkpoint.startswith("/")


def checkpoint_config(spec: ModelSpec, checkpoint: str) -> Any:
    """The configuration of a stock checkpoint with the fields of `model.config` set in it. Raises UserError."""
    family = FAMILIES[spec.family]
    config = read_config(checkpoint)
    if type(config).__name__ != family.config:
        raise UserError("model.checkpoint", f"{checkpoint} is a {config.model_type}, not model.family={family.name}")
    fields = _place(family, spec.config, config)
    for name, value in fields.pop("encoder_config", {}).items():
        setattr(config.encoder_config, name, value)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def read_config(checkpoint: str) -> Any:
    """The configuration of a stock checkpoint, as it is. Raises UserError."""
    try:
        with tempfile.TemporaryDirectory() as copied:
            source = checkpoint
            if "://" in checkpoint:
                source = copied
                Path(copied, "config.json").write_bytes(storage.read_bytes(storage.join(checkpoint, "config.json")))
            return transformers_class("AutoConfig").from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise UserError("model.checkpoint", f"{checkpoint} does not open: {_one_line(error)}") from None


def with_units(config: Any, num_units: int) -> Any:
    """The same configuration for a model that writes so many units."""
    family = next(f for f in FAMILIES.values() if f.config == type(config).__name__)
    return type(config)(**{**config.to_dict(), **_tokens(family, num_units)})


def from_pretrained(
    family: Family, folder: str, config: Any, origin: str, where: str = "model.checkpoint"
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A float32 model from safetensors in a local folder or a hub repository, and its load report.

    origin: where the folder was copied from. Raises UserError.
    """
    try:
        model, report = transformers_class(family.model).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(where, f"{origin} does not load: {_one_line(error)}") from None
    return model, report


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


def _check_report(family: Family, report: dict[str, Any], checkpoint: str) -> list[str]:
    """Names of the head's keys that start anew; anything else in the load report raises UserError."""
    misshapen = {str(entry[0]) for entry in report["mismatched_keys"]}
    missing = {str(key) for key in report["missing_keys"]} | misshapen
    surplus = {str(key) for key in report["unexpected_keys"] if not str(key).startswith(family.surplus)}
    head = {key for key in missing if key.startswith(family.head)}
    # The mask vector is only used in training and has no weights worth keeping.
    masks = {key for key in missing if key.endswith("masked_spec_embed")}
    for kind, keys in (("missing or misshapen", missing - head - masks), ("surplus", surplus)):
        if keys:
            shown = ", ".join(sorted(keys)[:3])
            raise UserError("model.checkpoint", f"{checkpoint} has {len(keys)} {kind} keys, such as {shown}")
    return sorted(head | masks)
