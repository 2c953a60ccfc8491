"""Transformers configurations from specs and checkpoints, checked before any weight is loaded."""

import difflib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from foldray import storage
from foldray.config.model import ModelSpec
from foldray.errors import UserError, one_line
from foldray.folding.plan import FoldPlan
from foldray.models.families import FAMILIES, Family, family_of_config, transformers_class
from foldray.models.seed_layers import Method, check_seed
from foldray.storage.layout import CONFIG_FILE, ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# --- Configurations --------------------------------------------------------------------------------


def stock_config(spec: ModelSpec, num_layers: int, vocab_size: int) -> "PreTrainedConfig":
    """Build the transformers configuration of the seed from the family's defaults and `model.config`.

    Raises UserError naming a field that is unknown or refused by transformers.
    """
    family = FAMILIES[spec.family]
    fields = _place(family, spec.config, family.config_class())
    (fields.get("encoder_config", fields))[family.depth_field] = num_layers
    fields |= family.tokens(vocab_size)
    try:
        return family.config_class(**fields)
    except Exception as error:
        raise UserError("model.config", f"transformers refuses it: {one_line(error)}") from None


_SET_BY_FOLDRAY = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def _place(family: Family, fields: dict[str, Any], like: "PreTrainedConfig") -> dict[str, Any]:
    """Nest fields as the configuration has them: the encoder's may be nested, a decoder's are not.

    Raises UserError for a field that is unknown or that foldray sets.
    """
    inner = _known(like.encoder_config) if family.nested else []
    outer = _known(like) if not family.nested or family.attention else []
    for name in fields:
        if name == family.depth_field:
            raise UserError(f"model.config.{name}", "set fold.num_layers instead")
        if name in _SET_BY_FOLDRAY:
            raise UserError(f"model.config.{name}", "is set by foldray; remove it")
        if name not in (*inner, *outer):
            close = difflib.get_close_matches(name, [*inner, *outer], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"model.config.{name}", f"{type(like).__name__} has no such field{hint}")
    placed: dict[str, Any] = {name: value for name, value in fields.items() if name in outer}
    if family.nested:
        placed["encoder_config"] = {name: value for name, value in fields.items() if name in inner}
    return placed


def _known(config: "PreTrainedConfig") -> list[str]:
    return [name for name in vars(config) if not name.startswith("_") and name != "encoder_config"]


@overload
def find_checkpoint(checkpoint: str) -> str: ...
@overload
def find_checkpoint(checkpoint: None) -> None: ...
def find_checkpoint(checkpoint: str | None) -> str | None:
    """Resolve a checkpoint to an absolute folder, a URI or a hub name. Raises UserError if a folder does not exist."""
    if not checkpoint or "://" in checkpoint:
        return checkpoint
    local = Path(checkpoint).expanduser()
    if local.is_dir():
        return str(local.absolute())
    if checkpoint.startswith(("/", ".", "~")):
        raise UserError("model.checkpoint", f"{checkpoint} not found; give a folder, a URI or a hub name")
    return checkpoint


def is_hub_name(checkpoint: str) -> bool:
    """Whether a checkpoint resolved by `find_checkpoint` is a hub name."""
    return "://" not in checkpoint and not checkpoint.startswith("/")


def checkpoint_config(spec: ModelSpec, checkpoint: str) -> "PreTrainedConfig":
    """Read the configuration of a stock checkpoint and set the fields of `model.config` in it. Raises UserError."""
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


def read_config(checkpoint: str) -> "PreTrainedConfig":
    """Read the configuration of a stock checkpoint. Raises UserError."""
    try:
        with tempfile.TemporaryDirectory() as copied:
            source = checkpoint
            if "://" in checkpoint:
                source = copied
                Path(copied, CONFIG_FILE).write_bytes(storage.read_bytes(ModelFolder(checkpoint).file(CONFIG_FILE)))
            config: PreTrainedConfig = transformers_class("AutoConfig").from_pretrained(source, trust_remote_code=False)
            return config
    except Exception as error:
        problem = (
            "is not a local folder, and loading it from the hub failed" if is_hub_name(checkpoint) else "does not load"
        )
        raise UserError("model.checkpoint", f"{checkpoint} {problem}: {one_line(error)}") from None


def with_vocab_size(config: "PreTrainedConfig", vocab_size: int) -> "PreTrainedConfig":
    """Copy a configuration with another vocabulary size."""
    family = family_of_config(config)
    assert family is not None
    return type(config)(**{**config.to_dict(), **family.tokens(vocab_size)})


# --- Checks ----------------------------------------------------------------------------------------


def check_plan(available: int, plan: FoldPlan, method: Method) -> None:
    """Raise UserError if a checkpoint of so many layers can't be the seed of a plan."""
    try:
        check_seed(available, plan, method)
    except ValueError as error:
        raise UserError("fold.num_layers" if available < plan.num_layers else "model.seed_layers", str(error)) from None


@contextmanager
def fold_errors() -> Iterator[None]:
    """Turn a ValueError about a plan into a UserError that names the field."""
    try:
        yield
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise UserError(f"fold.{field}", problem) from None


def check_model(spec: ModelSpec, plan: FoldPlan) -> None:
    """Check that a model can be trained, without loading weights.

    Raises:
        UserError: The family has no CTC, transformers refuses the configuration, or the checkpoint does not load.
    """
    family = FAMILIES[spec.family]
    if not family.ctc:
        raise UserError(
            "model.family", f"{spec.family} has no CTC, which foldray trains; fold {family.model} with fold_checkpoint"
        )
    stock_config(spec, plan.num_layers, vocab_size=1)
    checkpoint = find_checkpoint(spec.checkpoint)
    if checkpoint:
        config = checkpoint_config(spec, checkpoint)
        available = getattr(family.depth_config(config), family.depth_field)
        check_plan(available, plan, spec.seed_layers)
