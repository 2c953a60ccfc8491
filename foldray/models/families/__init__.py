"""Model families: one file each, which names the stock transformers classes and holds everything that differs.

To add a family, add a file with a `FAMILY` here and a tiny configuration in the tests. The file's name is the value of
`model.family` with underscores for hyphens; files that begin with an underscore are shared helpers.
"""

import importlib
import pkgutil
from typing import Any

from foldray.errors import UserError
from foldray.models.families._family import Family, load_class
from foldray.models.families._refused import REFUSED

__all__ = ["FAMILIES", "REFUSED", "Family", "family_of", "family_of_config", "transformers_class"]


def _discover() -> dict[str, Family]:
    families = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            family: Family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
            assert family.name == module.name.replace("_", "-"), f"{module.name}.py describes {family.name}"
            families[family.name] = family
    return families


FAMILIES = _discover()
"""Every family by name."""


def family_of(model: object) -> Family:
    """Find the family of a stock or folded model.

    Raises:
        UserError: The class can't be folded; gives the reason.
    """
    name = type(model).__name__.removeprefix("FSDP")  # fully_shard() gives a model a class of its own
    for family in FAMILIES.values():
        if name == family.model:
            return family
    kin = family_of_config(getattr(model, "config", None))
    if kin and name not in REFUSED:
        raise UserError(name, f"can't be folded: foldray folds the whole recogniser; give {kin.model}")
    known = ", ".join(family.model for family in FAMILIES.values())
    raise UserError(
        name, f"can't be folded: {REFUSED.get(name, 'foldray has no family for this class')}; families: {known}"
    )


def family_of_config(config: object) -> Family | None:
    """Find the family of a transformers configuration; None if foldray folds no such model."""
    return next((family for family in FAMILIES.values() if family.config == type(config).__name__), None)


def transformers_class(name: str) -> type[Any]:
    """Get a class of transformers, or of a family's own module, by name; disables the library's progress bars."""
    # All of them, before any AutoConfig: a family's own module registers its configuration there.
    own = {family.module: importlib.import_module(family.module) for family in FAMILIES.values()}
    where = next((module for module in own if module != "transformers" and name in own[module].__all__), "transformers")
    return load_class(where, name)
