"""Shipped recipes: specs by name, each a YAML file in this folder."""

import difflib
from importlib import resources
from pathlib import Path

import yaml

from foldray.config.load import Values, apply_overrides, build_spec, read_spec_file
from foldray.config.spec import RunSpec
from foldray.errors import UserError


def recipe_names() -> list[str]:
    """List the names of the shipped recipes, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(recipe: str, overrides: list[str] | None = None) -> RunSpec:
    """Load a recipe and apply overrides.

    Args:
        recipe: A shipped name or a YAML/JSON file, which may start from another recipe with `extends: NAME`.
        overrides: `key=value` pairs with dotted keys, such as `fold.depths=[6,9,12]`.

    Raises:
        UserError: The recipe does not exist or a field is invalid; names it.
    """
    return build_spec(apply_overrides(_values(recipe), overrides or []), recipe)


def _values(recipe: str, seen: tuple[Path, ...] = ()) -> Values:
    if recipe in recipe_names():
        shipped = yaml.safe_load(resources.files(__name__).joinpath(f"{recipe}.yaml").read_text(encoding="utf-8"))
        base = shipped.pop("extends", None)
        return {**(_merge(_values(base), shipped) if base else shipped), "name": recipe}
    path = Path(recipe)
    if not path.is_file():
        close = difflib.get_close_matches(recipe, recipe_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(recipe, f"no such recipe or file; {hint}shipped recipes: {', '.join(recipe_names())}")
    values = read_spec_file(path)
    base = values.pop("extends", None)
    if base is None:
        return {"name": path.stem, **values}
    if path.resolve() in seen:
        raise UserError(recipe, "extends itself")
    start = str(base) if str(base) in recipe_names() else str(path.parent / str(base))
    return _merge({**_values(start, (*seen, path.resolve())), "name": path.stem}, values)


def _merge(base: Values, values: Values) -> Values:
    merged = dict(base)
    for key, value in values.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
