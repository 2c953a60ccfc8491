"""Read recipe files and `key=value` overrides into a valid spec; errors are one line that names the field."""

import copy
import difflib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import yaml
from pydantic import BaseModel, JsonValue, ValidationError

from foldray.config.plain_yaml import MAX_CHARACTERS, parse_yaml
from foldray.config.spec import RunSpec
from foldray.errors import UserError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Values = dict[str, JsonValue]
"""A recipe or part of one, as read from YAML or JSON."""


def build_spec(values: Values, origin: str) -> RunSpec:
    """Validate a mapping. Raises UserError with the dotted path of the first invalid field."""
    _check_sizes(values, "", origin)
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # Of a field that takes a number or a list, the error about the kind that was given comes second.
        first = next((each for each in found if not (each["type"] == "int_type" and _is_list(each["input"]))), found[0])
        raise _explain(first, origin) from None


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


LARGEST = 10**12
"""Numbers of a spec are smaller; only random seeds may be any integer of 63 bits."""


def _check_sizes(value: JsonValue, where: str, origin: str) -> None:
    """Raise UserError for a number that no field can mean, and for nesting without end."""
    if where.count(".") > DEEPEST:
        raise UserError(where.partition(".")[0], f"is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_sizes(inner, f"{where}.{name}" if where else str(name), origin)
    elif isinstance(value, list):
        for inner in value:
            _check_sizes(inner, where, origin)
    elif isinstance(value, int | float) and math.isfinite(value):
        most = 2**63 - 1 if where.endswith("seed") else LARGEST
        if abs(value) > most:
            raise UserError(where or origin, f"{shown(value)} is out of range; give at most {most:,}")


DEEPEST = 20
"""Levels of a spec's mappings."""


def _explain(error: "ErrorDetails", origin: str) -> UserError:
    # Of a field that takes several types, pydantic names the type it tried last.
    # An entry of a list is named by its value, which the message has.
    parts = [part for part in error["loc"] if isinstance(part, str) and part != "int" and not part.startswith("tuple[")]
    where = ".".join(parts) or origin
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return UserError(where, f"unknown field{_suggest(error['loc'])}")
    if error["type"] in _LENGTHS or (error["type"] == "missing" and isinstance(error["loc"][-1], int)):
        return UserError(where, f"has too {_LENGTHS.get(error['type'], 'few')} values")
    if error["type"] == "missing":
        return UserError(where, f"missing in {origin}; add it, or give {where}=… on the command line")
    if error["type"] == "value_error" and not error["loc"]:
        field, _, message = message.partition(": ")
        return UserError(field, message)
    if error["type"] == "value_error" and where in ("fold", "fold.decoder"):
        field, _, message = message.partition(": ")
        return UserError(f"{where}.{field}", message)
    if error["type"] == "value_error":
        return UserError(where, message)
    given = shown(error["input"])
    if error["type"] == "tuple_type":
        return UserError(where, f"give a list in brackets, such as [{error['input']}]")
    if error["type"] == "literal_error":
        return UserError(where, must_be_one_of(str(error["input"]), re.findall("'([^']*)'", error["ctx"]["expected"])))
    if wanted := _WANTED.get(error["type"]):
        return UserError(where, f"{given} {wanted}")
    message = message.removeprefix("Input should ")
    return UserError(
        where,
        f"{given} must {message}" if message.startswith("be ") else f"{message[0].lower()}{message[1:]} (got {given})",
    )


_LENGTHS = {"too_short": "few", "too_long": "many"}
_NUMBER, _WHOLE = "must be a number, such as 3e-4", "must be a whole number"
_TEXT, _TRUTH = "must be text; put it in quotes", "must be true or false"
_WANTED = {
    "float_parsing": _NUMBER, "float_type": _NUMBER, "finite_number": "must be a finite number",
    "int_parsing": _WHOLE, "int_type": _WHOLE, "int_from_float": _WHOLE, "int_parsing_size": _WHOLE,
    "bool_parsing": _TRUTH, "bool_type": _TRUTH, "string_type": _TEXT,
    "model_type": "must be a section of fields, such as {field: value}",
    "dict_type": "must be a mapping, such as {name: value}",
}  # fmt: skip
"""What a value must be, by the kind of pydantic's error."""


def shown(value: object) -> str:
    """Return a value as it is written in a spec, cut to a readable length."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


SHOWN = 80


def must_be_one_of(name: str, names: Sequence[str]) -> str:
    """Return what is wrong with a name that is not one of `names`, with the most similar one."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"{shown(name)} must be one of {', '.join(names)}{f'; did you mean {close[0]!r}?' if close else ''}"


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
            inner = target.get(section)
            if inner is None:  # missing, or an optional section that is not used
                inner = target[section] = {}
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
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(key, f"{shown(text)} is not a YAML value; quote it") from None
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
        with path.open(encoding="utf-8-sig") as file:
            values = parse_yaml(file.read(MAX_CHARACTERS + 1))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"not readable as YAML or JSON ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(values, dict):
        raise UserError(str(path), "is not a mapping of spec fields")
    checked = _with_numbers(values)
    assert isinstance(checked, dict)
    return checked
