"""JSON files of a store, whose content is checked against a type before anything uses it."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from foldray import storage
from foldray.errors import DamagedFileError

T = TypeVar("T")
_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)  # building one is a thousand checks long


def read_as(kind: type[T], uri: str, most: int = storage.MAX_JSON_BYTES) -> T:
    """Return the content of a JSON file of at most `most` bytes as `kind`, a type that pydantic can check.

    Raises:
        FileNotFoundError: The file does not exist.
        UserError: It is larger.
        DamagedFileError: Names the file and the first field that is missing or wrong.
    """
    return check_as(kind, storage.read_json(uri, most), uri)


def check_as(kind: type[T], value: object, where: str, *, strict: bool = False) -> T:
    """Return a value of a JSON file or line as `kind`. Raises DamagedFileError naming `where` and the field.

    Args:
        kind: A type that pydantic can check.
        value: The parsed JSON.
        where: Its file, for the message.
        strict: Whether "1" or true is refused where `kind` has a number.
    """
    try:
        checked: T = _adapter(kind).validate_python(value, strict=strict)
        return checked
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "content"
        problem = first["msg"].removeprefix("Value error, ")
        raise DamagedFileError(where, f"is damaged ({field}: {problem[0].lower()}{problem[1:]})") from None
