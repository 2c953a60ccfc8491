"""What small files of a model may be, by anybody: no code, no more modules than any model has, of a bounded size."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from foldray.errors import UserError
from foldray.storage.layout import CONFIG_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MAX_LAYERS = 1024
MOST_SMALL_BYTES = 2**26
"""Most bytes of a file of a model that is no weights; the largest tokenizers have some 30 MB."""
_COUNTS = ("layers", "num_conv_pos_embeddings")
"""Ends of the names of fields that make so many modules; of data2vec, the second does too."""
_SIZES = ("conv_", "tdnn_")
"""Beginnings of the names of lists with an entry for each module."""


def check_config(config: "PreTrainedConfig", where: str, origin: str = "") -> None:
    """Check a configuration before a model is built: a module takes time also where it takes no memory.

    Args:
        config: The configuration, whose nested ones are checked too.
        where: The field or file that errors name.
        origin: Where it comes from, as a beginning of the message, where `where` does not say so.

    Raises:
        UserError: It names code of its own (`auto_map`), a number of layers that no model has, a dropout that is no
            probability, or a number that is not finite.
    """
    for each in _nested(config):
        if getattr(each, "auto_map", None):
            fix = f"foldray never runs it; remove auto_map from {CONFIG_FILE}"
            raise UserError(where, f"{origin}names code of its own (auto_map); {fix}")
        for name, value in vars(each).items():
            count = len(value) if name.startswith(_SIZES) and isinstance(value, list | tuple) else value
            if (count is not value or name.endswith(_COUNTS)) and not _is_count(count):
                problem = "has too many entries" if count is not value else f"is {value!r:.40}"
                raise UserError(where, f"{origin}{name} {problem}, not 0 to {MAX_LAYERS}")
            if isinstance(value, float) and not (0 <= value <= 1 if "drop" in name else math.isfinite(value)):
                fix = "set it to a number from 0 to 1" if "drop" in name else "set it to a finite number"
                raise UserError(where, f"{origin}{name} is {value}; {fix}")


def check_small_files(folder: Path, where: str, origin: str) -> None:
    """Raise UserError for a JSON file of a model folder that is too large: transformers would read it whole."""
    for file in sorted(folder.glob("*.json")):
        if file.is_file():
            check_size(file.name, file.stat().st_size, where, origin)


def check_size(name: str, size: int | None, where: str, origin: str) -> None:
    """Raise UserError for a file of a model that is no weights and too large; None for an unknown size."""
    if size is not None and size > MOST_SMALL_BYTES and not name.endswith(".safetensors"):
        fix = "do not trust this model"
        raise UserError(where, f"{origin}/{name} has {size:,} bytes, over the limit of {MOST_SMALL_BYTES:,}; {fix}")


def _is_count(value: object) -> bool:
    """Whether a value is a usable number; what is not a number at all is refused by the model."""
    return not isinstance(value, int | float) or 0 <= value <= MAX_LAYERS


def _nested(config: "PreTrainedConfig") -> Iterator["PreTrainedConfig"]:
    """A configuration and those in its fields."""
    from transformers import PreTrainedConfig

    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _nested(value)
