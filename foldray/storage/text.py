"""Text files of a store, and JSON lines: the only module of `foldray.data` that decodes either from a source."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from pydantic import JsonValue

from foldray import storage

JsonObject: TypeAlias = dict[str, JsonValue]

_READING_THREADS = 16


def read_text(uri: str) -> str:
    """A text file. Bytes that are not UTF-8 become replacement characters, which text normalisation drops."""
    return storage.read_bytes(uri).decode("utf-8-sig", "replace")


def read_lines(uri: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    # Not splitlines(): texts may contain the other characters that Unicode counts as line ends.
    for number, line in enumerate(read_text(uri).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def read_texts(uris: Iterable[str]) -> Iterator[str]:
    """Many small text files, several at once: every request to an object store takes a while."""
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        yield from pool.map(read_text, uris)


def parse_object(text: str | bytes) -> JsonObject:
    """The JSON object of a line or file. Raises ValueError for invalid JSON and for any other value."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("is not JSON (nested too deeply)") from None
    if not isinstance(value, dict):
        raise ValueError('is not an object; write {"audio": "…", "text": "…"}')
    return value
