"""Text files of a store, and JSON lines: the only module of `foldray.data` that decodes either from a source."""

import codecs
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

from pydantic import JsonValue

from foldray import storage
from foldray.errors import UserError

JsonObject: TypeAlias = dict[str, JsonValue]

_READING_THREADS = 16
_ARRAY_BYTES = 256 * 2**20
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Byte order marks of wide encodings; that of UTF-32 begins with that of UTF-16, so it comes first."""

MAX_TEXT_BYTES = 2**20
"""Most bytes of one text: a text file beside audio, a member of a tar, a value of a table."""
MAX_LINE_BYTES = 2**24
"""Most bytes of a line of JSON."""


class NotTextError(ValueError):
    """Bytes that are no text; the message names the first wrong one and how to convert the file."""


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
        number: Counted from 1.
        text: The line without its end; with escapes such as `\\xdc` where it is not UTF-8.
        problem: What is wrong with its bytes and how to fix it; None if nothing is.
    """

    number: int
    text: str
    problem: str | None = None


def decode_text(data: bytes) -> str:
    """Decode a text: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Raises:
        NotTextError: The bytes are in no such encoding, or hold NUL characters.
    """
    encoding = _wide_encoding(data) or "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        bad, at = data[error.start], error.start
        if encoding != "utf-8-sig":
            problem = f"begins as {encoding.upper()} but byte {at + 1} is not; write it as UTF-8"
            raise NotTextError(problem) from None
        fix = "convert the file with `iconv -f WINDOWS-1252 -t UTF-8`, or from the encoding it has"
        raise NotTextError(f"byte 0x{bad:02x} at position {at + 1} is not UTF-8; {fix}") from None
    if "\0" in text:
        raise NotTextError("holds NUL bytes, as UTF-16 without a byte order mark does; write it as UTF-8")
    return text


def _wide_encoding(data: bytes) -> str | None:
    return next((name for mark, name in _WIDE_MARKS.items() if data.startswith(mark)), None)


def read_lines(uri: str) -> Iterator[Line]:
    """Lines of a text file that are not blank. Raises UserError for a file in a wide encoding that is damaged."""
    yield from split_lines(storage.read_bytes(uri), uri)


def split_lines(data: bytes, uri: str) -> Iterator[Line]:
    """Lines of a text file's bytes that are not blank. Raises UserError for a damaged file in a wide encoding."""
    head = data[:4096]
    if _wide_encoding(data) or head.count(0) * 4 > len(head):
        try:
            data = decode_text(data).encode()
        except NotTextError as error:
            raise UserError(uri, str(error)) from None
    # Not splitlines(): texts may contain the other characters that Unicode counts as line ends.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield Line(number, decode_text(line).removesuffix("\r"))
        except NotTextError as error:
            yield Line(number, line.decode("utf-8", "backslashreplace").removesuffix("\r"), str(error))


def read_files(uris: Iterable[str]) -> Iterator[bytes]:
    """The bytes of many small files, several at once: every request to an object store takes a while."""
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        yield from pool.map(storage.read_bytes, uris)


def parse_object(text: str) -> JsonObject:
    """The JSON object of a line or file. Raises ValueError for invalid JSON and for any other value."""
    return check_object(_parse(text))


def check_object(value: JsonValue) -> JsonObject:
    """The value, which must be an object. Raises ValueError for any other one."""
    if not isinstance(value, dict):
        raise ValueError('is not an object; write {"audio": "…", "text": "…"}')
    return value


def parse_array(data: bytes, uri: str) -> list[JsonValue] | None:
    """The values of a file that is one JSON array, None if it is anything else.

    Raises:
        UserError: The file holds an array of over 256 MiB.
    """
    # The first bytes tell: a manifest of JSON lines may have any size.
    start = data[:64].decode(_wide_encoding(data) or "utf-8-sig", "ignore").lstrip()
    if not start.startswith("["):
        return None
    if len(data) > _ARRAY_BYTES:
        raise UserError(uri, f"is one JSON array of {len(data):,} bytes; write one object a line, without brackets")
    try:
        values = _parse(decode_text(data), _ARRAY_BYTES)
    except ValueError:
        return None
    return values if isinstance(values, list) else None


def _parse(text: str, most: int | None = None) -> JsonValue:
    if len(text) > (MAX_LINE_BYTES if most is None else most):
        raise ValueError(f"has {len(text):,} characters, over {MAX_LINE_BYTES:,}")
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos :].lstrip().startswith("{"):
            raise ValueError(f"has a second object at column {error.colno}; write one object a line") from None
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("is not JSON (nested too deeply)") from None
    return value
