"""The weight files of a model, checked before anything opens them: safetensors only, of the model's size and types."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.models.config_checks import MAX_LAYERS, check_config, check_small_files
from foldray.models.families import Family
from foldray.models.hub import ADAPTER_FILE, CONVERT, INDEX_FILE, PICKLED
from foldray.models.int8 import SCALE
from foldray.storage.layout import CONFIG_FILE, STOCK_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOATS = ("F16", "BF16", "F32", "F64")
POINTER = b"version https://git-lfs"
SPARE_NUMBERS = 2**26
"""How many numbers a model may have beyond twice those of its weight files: new heads and embeddings."""


def check_weights(family: Family, folder: Path, config: "PreTrainedConfig", origin: str, where: str) -> None:
    """Check the weight files of a model before they are opened.

    Args:
        family: The model's family.
        folder: The local folder that holds them.
        config: The model's configuration.
        origin: Where the folder was copied from, for messages.
        where: The field that errors name.

    Raises:
        UserError: Weights are pickled, outside the folder, damaged, of integers, of a wrapped or an adapted model, or
            the configuration describes a far larger model; or a file that is no weights is too large.
    """
    if getattr(config, "transformers_weights", None):
        raise UserError(where, f"{origin}: {CONFIG_FILE} names a weight file (transformers_weights); remove the field")
    check_small_files(folder, where, origin)
    numbers = _numbers(_weight_files(folder, origin, where), origin, where)
    _check_wrapped(numbers, origin, where)
    _check_size(family, config, sum(numbers.values()), origin, where)


def check_int8_weights(family: Family, file: Path, config: "PreTrainedConfig", origin: str, where: str) -> None:
    """Check the weight file of an int8 model before it is loaded. Arguments as `check_weights`.

    Raises:
        UserError: The configuration describes a far larger model.
        ValueError: A tensor has another type or scale than foldray writes; so do SafetensorErrors.
    """
    tensors = _header(file)
    for name, (kind, shape) in tensors.items():
        scaled = tensors.get(name.removesuffix(SCALE)) if name.endswith(SCALE) else None
        if kind not in (*FLOATS, "I8") and not name.endswith(INTEGERS):
            raise ValueError(f"{name} has the type {kind}")
        if scaled and shape != [*scaled[1][:1], *[1] * (len(scaled[1]) - 1)]:  # the product may be far larger
            raise ValueError(f"{name} has the shape {shape}")
    _check_size(family, config, sum(math.prod(shape) for _, shape in tensors.values()), origin, where)


def _weight_files(folder: Path, origin: str, where: str) -> list[Path]:
    if (folder / ADAPTER_FILE).exists():
        raise UserError(where, f"{origin} is an adapter ({ADAPTER_FILE}), not a model; merge it into its model first")
    if (folder / STOCK_FILE).exists():
        return [folder / STOCK_FILE]
    if (folder / INDEX_FILE).exists():
        return [folder / name for name in indexed_files(folder / INDEX_FILE, origin, where)]
    if pickled := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED):
        raise UserError(where, f"{origin} has weights in {pickled[0]} only, not {STOCK_FILE}; {CONVERT}")
    raise UserError(where, f"{origin} has no {STOCK_FILE}; copy the whole model folder")


def indexed_files(index: Path, origin: str, where: str) -> list[str]:
    """The weight files that an index names. Raises UserError for any that is not a safetensors file beside it."""
    content = storage.parse_json(index.read_bytes(), f"{origin}/{INDEX_FILE}")
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not isinstance(content.get("metadata"), dict):
        raise UserError(where, f"{origin}/{INDEX_FILE} is damaged (it has no weight_map or metadata)")
    for name in named.values():
        if not isinstance(name, str) or not storage.is_plain(name) or not name.endswith(".safetensors"):
            problem = f"names {str(name)[:80]!r}, which is not a .safetensors file beside it; do not trust this model"
            raise UserError(where, f"{origin}/{INDEX_FILE} {problem}")
    return sorted({*named.values()})


INTEGERS = ("num_batches_tracked", "position_ids")
"""Buffers of stock models that are integers."""


def _header(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor of a file, of which only the header is read."""
    with safe_open(str(file), "pt") as weights:
        slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  # it is no dict
        return {name: (tensor.get_dtype(), list(tensor.get_shape())) for name, tensor in slices.items()}


def _numbers(files: Iterable[Path], origin: str, where: str) -> dict[str, int]:
    """Numbers in each tensor, from the headers of the files."""
    found: dict[str, int] = {}
    for file in files:
        shown = f"{origin}/{file.name}"
        if not file.is_file():
            raise UserError(where, f"{shown} is missing; copy the whole model folder")
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                fix = "run `git lfs pull` in the folder that it was copied or uploaded from"
                raise UserError(where, f"{shown} is a pointer of Git LFS, not the weights; {fix}")
        try:
            tensors = _header(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(where, f"{shown} is damaged ({one_line(error)}); copy it again") from None
        for name, (kind, shape) in tensors.items():
            found[name] = math.prod(shape)
            if kind not in FLOATS and not name.endswith(INTEGERS):
                raise UserError(where, f"{shown} has {kind} in {name}; give a model with floating-point weights")
    return found


def _check_wrapped(names: Iterable[str], origin: str, where: str) -> None:
    """Raise UserError if the keys of weights show that a wrapped model was saved."""
    first = next((name for name in names if name.startswith("module.") or "_orig_mod." in name), None)
    if first:
        fix = "save the model inside the wrapper (`model.module` or `model._orig_mod`)"
        raise UserError(where, f"{origin} has the key {first}, as a model wrapped by DDP or torch.compile; {fix}")


def _check_size(family: Family, config: "PreTrainedConfig", stored: int, origin: str, where: str) -> None:
    """Raise UserError if a configuration describes a model that its weights cannot fill: it would be allocated."""
    layers = getattr(family.depth_config(config), family.depth_field, None)
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise UserError(where, f"{origin}/{CONFIG_FILE}: {family.depth_field} is {layers!r}, not 1 to {MAX_LAYERS}")
    check_config(config, where, f"{origin}/{CONFIG_FILE}: ")
    try:
        with torch.device("meta"):
            described = family.model_class(config)
    except Exception as error:  # transformers checks little: this may be a KeyError or a division by zero
        problem = f"gives no model ({type(error).__name__}: {one_line(error)}); correct the field it names"
        raise UserError(where, f"{origin}/{CONFIG_FILE} {problem}") from None
    numbers = sum(parameter.numel() for parameter in described.parameters())
    if numbers > 2 * stored + SPARE_NUMBERS:
        problem = f"describes a model of {numbers:,} parameters, but the weights have {stored:,}"
        raise UserError(where, f"{origin}/{CONFIG_FILE} {problem}; copy the configuration and the weights of one model")


def check_finite(model: nn.Module, origin: str, where: str) -> None:
    """Raise UserError naming the first tensor of a model with NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(where, f"{origin}: the weights {name} hold NaN or infinity; use an earlier checkpoint")
