"""Read recipe files and `key=value` overrides into a valid spec; errors are one line that names the field."""

import copy
import difflib
import math
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import yaml
from pydantic import BaseModel, JsonValue, ValidationError

from foldray.config.spec import RunSpec
from foldray.errors import UserError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Values = dict[str, JsonValue]
"""A recipe or part of one, as read from YAML or JSON."""


def build_spec(values: Values, origin: str) -> RunSpec:
    """Validate a mapping. Raises UserError with the dotted path of the first invalid field."""
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _explain(first, origin) from None


def _explain(error: "ErrorDetails", origin: str) -> UserError:
    # Of a field that takes several types, pydantic names the type it tried last.
    parts = [str(part) for part in error["loc"] if part != "int" and not str(part).startswith("tuple[")]
    where = ".".join(parts) or origin
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return UserError(where, f"unknown field{_suggest(error['loc'])}")
    if error["type"] == "missing":
        return UserError(where, f"missing in {origin}; add it, or give {where}=… on the command line")
    if error["type"] == "value_error" and not error["loc"]:
        field, _, message = message.partition(": ")
        return UserError(field, message)
    if error["type"] == "value_error" and where == "fold":
        field, _, message = message.partition(": ")
        return UserError(f"fold.{field}", message)
    if error["type"] == "value_error":
        return UserError(where, message)
    if error["type"] == "tuple_type":
        return UserError(where, f"give a list in brackets, such as [{error['input']}]")
    return UserError(where, f"{message[0].lower()}{message[1:]} (got {error['input']!r})")


def _suggest(location: tuple[str | int, ...]) -> str:
    section: type[BaseModel] = RunSpec
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation if str(part) in section.model_fields else None
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is None:
            return ""
        section = inner
    names = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(names)}"


def apply_overrides(values: Values, overrides: list[str]) -> Values:
    """Copy `values` and set dotted `key=value` pairs (YAML values) in it. Raises UserError."""
    merged = copy.deepcopy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(override, "an override is key=value, such as optim.lr=3e-4")
        *sections, name = key.split(".")
        target = merged
        for section in sections:
            inner = target.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(key, f"'{section}' is a value, not a section")
            target = inner
        target[name] = _parse_value(key, text)
    return merged


def override_spec(spec: RunSpec, overrides: list[str]) -> RunSpec:
    """Copy a spec and set `key=value` pairs in it. Raises UserError."""
    return build_spec(apply_overrides(spec.model_dump(mode="json"), overrides), "the spec")


def _parse_value(key: str, text: str) -> JsonValue:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(key, f"'{text}' is not a YAML value; quote it") from None
    return _with_numbers(value)


def _with_numbers(value: JsonValue) -> JsonValue:
    """YAML 1.1 reads 3e-4 as text; people mean the number."""
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "-+.0123456789":
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value


def read_spec_file(path: Path) -> Values:
    """Read a mapping from a YAML or JSON file. Raises UserError naming the file."""
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"not readable as YAML or JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(values, dict):
        raise UserError(str(path), "is not a mapping of spec fields")
    checked = _with_numbers(values)
    assert isinstance(checked, dict)
    return checked
