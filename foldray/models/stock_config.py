"""Transformers configurations from specs and checkpoints, checked before any weight is loaded."""

import copy
import difflib
import operator
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from foldray import storage
from foldray.config.model import ModelSpec, PlannedModel
from foldray.errors import UserError, one_line
from foldray.folding.plan import FoldPlan, check_chosen
from foldray.models.config_checks import MOST_SMALL_BYTES, check_config, check_small_files
from foldray.models.families import FAMILIES, Family, family_of_config, transformers_class
from foldray.models.hub import copy_config, list_model
from foldray.models.seed_layers import Method, check_seed
from foldray.models.windows import AUDIO_WINDOW
from foldray.storage.layout import CONFIG_FILE, ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# --- Configurations --------------------------------------------------------------------------------


def stock_config(
    spec: ModelSpec, num_layers: int, vocab_size: int, decoder_layers: int | None = None
) -> "PreTrainedConfig":
    """Build the transformers configuration of the seed from the family's defaults and `model.config`.

    Args:
        spec, num_layers, vocab_size: The model, the physical layers of its encoder, and the size of its vocabulary.
        decoder_layers: Physical layers of a folded decoder; by default as many as `model.config` says.

    Raises:
        UserError: A field is unknown or refused by transformers; names it.
    """
    family = FAMILIES[spec.family]
    fields = _place(family, spec.config, family.config_class())
    (fields.get(family.nest, fields))[family.depth_field] = num_layers
    name = family.decoder_depth_field
    if name and decoder_layers is not None and fields.setdefault(name, decoder_layers) != decoder_layers:
        raise UserError(f"model.config.{name}", f"must equal fold.decoder.num_layers = {decoder_layers}; remove it")
    fields = _nested_update(fields, family.tokens(vocab_size))
    try:
        return family.config_class(**fields)
    except Exception as error:
        raise UserError("model.config", f"transformers refuses it: {one_line(error)}") from None


_SET_BY_FOLDRAY = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def _place(family: Family, fields: dict[str, Any], like: "PreTrainedConfig") -> dict[str, Any]:
    """Nest fields as the configuration has them: the encoder's may be nested, a decoder's are not.

    Raises UserError for a field that is unknown or that foldray sets.
    """
    nested = {nest: _known(getattr(like, nest), family) for nest in _nests(family)}
    outer = _known(like, family) if not family.nested or family.attention else []
    known = [*outer, *(name for names in nested.values() for name in names)]
    for name in fields:
        if name == family.depth_field:
            raise UserError(f"model.config.{name}", "set fold.num_layers instead")
        if name in _SET_BY_FOLDRAY:
            raise UserError(f"model.config.{name}", "is set by foldray; remove it")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"model.config.{name}", f"{type(like).__name__} has no such field{hint}")
    placed: dict[str, Any] = {name: value for name, value in fields.items() if name in outer}
    return placed | {nest: {name: fields[name] for name in fields if name in names} for nest, names in nested.items()}


def _nests(family: Family) -> list[str]:
    return [nest for nest in (family.nest if family.nested else None, family.decoder_nest) if nest]


def _known(config: "PreTrainedConfig", family: Family) -> list[str]:
    return [name for name in vars(config) if not name.startswith("_") and name not in _nests(family)]


def _nested_update(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    nested = {name: {**fields[name], **value} for name, value in more.items() if isinstance(value, dict)}
    return {**fields, **more, **nested}


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
    for nest in _nests(family):
        for name, value in fields.pop(nest).items():
            setattr(getattr(config, nest), name, value)
    for name, value in fields.items():
        setattr(config, name, value)
    if family.fixed_length:
        setattr(config, AUDIO_WINDOW, spec.window)
    return config


def read_config(checkpoint: str) -> "PreTrainedConfig":
    """Read the configuration of a stock checkpoint. Raises UserError."""
    source = str(copy_config(checkpoint)) if is_hub_name(checkpoint) else checkpoint
    try:
        with tempfile.TemporaryDirectory() as copied:
            if "://" in checkpoint:
                source, file = copied, ModelFolder(checkpoint).file(CONFIG_FILE)
                Path(copied, CONFIG_FILE).write_bytes(storage.read_bounded(file, MOST_SMALL_BYTES))
            check_small_files(Path(source), "model.checkpoint", checkpoint)
            if not Path(source, CONFIG_FILE).is_file():
                fix = "name the folder of a transformers model"
                raise UserError("model.checkpoint", f"{checkpoint} has no {CONFIG_FILE}; {fix}")
            config: PreTrainedConfig = transformers_class("AutoConfig").from_pretrained(source, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:
        raise UserError("model.checkpoint", f"{checkpoint} does not load: {one_line(error)}") from None
    check_config(config, "model.checkpoint", f"{checkpoint}: {CONFIG_FILE} ")
    return config


def with_vocab_size(config: "PreTrainedConfig", vocab_size: int) -> "PreTrainedConfig":
    """Copy a configuration with another vocabulary size; a stock decoder keeps the tokens of its checkpoint."""
    family = family_of_config(config)
    assert family is not None
    if family.seq2seq:
        return copy.deepcopy(config)
    return type(config)(**_nested_update(config.to_dict(), family.tokens(vocab_size)))


# --- Checks ----------------------------------------------------------------------------------------


def choose_layers(
    family: Family,
    available: int,
    plan: FoldPlan,
    method: Method,
    layers: Sequence[int] | None = None,
    section: Literal["fold", "fold.decoder"] = "fold",
) -> list[int]:
    """Choose which of a checkpoint's layers, `available` in number, a seed is made from.

    Args:
        family: The checkpoint's family.
        available: Number of layers that the checkpoint has in this stack.
        plan: The fold plan of the stack.
        method: How these layers become the physical ones.
        layers: Their numbers, ascending; default: all.
        section: The section of a spec with the plan.

    Returns:
        Their numbers.

    Raises:
        UserError: The checkpoint lacks a layer, or these can't be the seed of the plan; names the field.
    """
    chosen = list(range(available) if layers is None else map(operator.index, layers))
    field = "model.layers" if section == "fold" else "model.decoder_layers"
    if layers is not None:
        try:
            check_chosen(chosen, plan.num_layers, available)
        except ValueError as error:
            raise UserError(field, str(error)) from None
        if family.carried and chosen[0]:
            raise UserError(field, f"{chosen} must begin with 0: that layer makes the {family.carried} of all others")
    try:
        check_seed(len(chosen), plan, method)
    except ValueError as error:
        field = f"{section}.num_layers" if len(chosen) < plan.num_layers else "model.seed_layers"
        raise UserError(field, str(error)) from None
    return chosen


def check_seeds(config: "PreTrainedConfig", planned: PlannedModel) -> None:
    """Raise UserError if a checkpoint of this configuration can't be the seed of encoder and decoder."""
    spec, family = planned.model, FAMILIES[planned.model.family]
    available = getattr(family.depth_config(config), family.depth_field)
    choose_layers(family, available, planned.plan, spec.seed_layers, spec.layers or None)
    if planned.decoder and family.decoder_depth_field:
        available = getattr(config, family.decoder_depth_field)
        layers = spec.decoder_layers or None
        choose_layers(family, available, planned.decoder, spec.seed_layers, layers, "fold.decoder")


@contextmanager
def fold_errors() -> Iterator[None]:
    """Turn a ValueError about a plan into a UserError that names the field."""
    try:
        yield
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise UserError(f"fold.{field}", problem) from None


def check_model(planned: PlannedModel) -> None:
    """Check that a model can be trained, without loading weights.

    Raises:
        UserError: The family can't be trained, a checkpoint is missing, transformers refuses the configuration, or the
            checkpoint does not load.
    """
    spec, plan = planned.model, planned.plan
    family = FAMILIES[spec.family]
    if family.untrained:
        fix = f"fold {family.model} with fold_checkpoint"
        raise UserError("model.family", f"{spec.family} can't be trained, since {family.untrained}; {fix}")
    if family.seq2seq and not spec.checkpoint:
        raise UserError("model.checkpoint", f"set it: {spec.family} has the tokens of its checkpoint")
    stock_config(spec, plan.num_layers, 1, planned.decoder.num_layers if planned.decoder else None)
    checkpoint = find_checkpoint(spec.checkpoint)
    if checkpoint:
        check_seeds(checkpoint_config(spec, checkpoint), planned)
        if is_hub_name(checkpoint):
            list_model(checkpoint)  # whether it has safetensors
