"""Multipart requests: read within bounds, and checked field by field."""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import cast

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from foldray.serving.answers import FORMATS, GRANULARITIES, TIMED, Granularity, ResponseFormat
from foldray.serving.messages import ModelFacts, Refusal

MAX_FILE = 25 * 2**20
"""Largest audio file, as OpenAI's."""
MAX_BODY = MAX_FILE + 2**20
MAX_DRAINED, DRAIN_SECONDS = 2 * MAX_FILE, 10.0
"""What is read of a refused body and thrown away."""
MAX_FIELDS, MAX_FIELD = 32, 64 * 2**10
BODY_SECONDS = 300.0
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1")
"""What fields may be encoded in. Of Python's other codecs some raise bare errors, and some take time or memory."""
FIELDS = (
    "file", "model", "language", "prompt", "response_format", "temperature", "timestamp_granularities[]",
    "timestamp_granularities", "stream", "chunking_strategy",
)  # fmt: skip
LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}")


class RefusedError(Exception):
    """Carries a refusal out of nested calls."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(status, message, code, param)


@dataclass(frozen=True)
class Upload:
    """A checked request.

    Attributes:
        data: The bytes of the audio file.
        model: The name of the model.
        language: Language code, or "".
        kind: The response format.
        granularities: What verbose_json has.
        ignored: Fields that have no effect on this model.
    """

    data: bytes
    model: str
    language: str
    kind: ResponseFormat
    granularities: tuple[Granularity, ...]
    ignored: tuple[str, ...]


async def read_upload(request: Request, facts: ModelFacts) -> Upload:
    """Read and check a transcription request. Raises RefusedError."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            form = await _form(request)
    except TimeoutError:
        raise RefusedError(408, f"the upload took over {BODY_SECONDS:g} s", "timeout") from None
    try:
        fields = _fields(form)
        data = await _file(form)
    finally:
        await form.close()
    return _checked(data, fields, facts)


async def _form(request: Request) -> FormData:
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise RefusedError(400, "send multipart/form-data with the fields file and model", "invalid_content_type")
    if parse_options_header(kind)[1].get(b"charset", b"utf-8").decode("latin-1").lower() not in CHARSETS:
        raise RefusedError(400, f"use one of the charsets {', '.join(CHARSETS)}, or none", "invalid_charset")
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) > MAX_BODY:
        raise _too_large()
    parser = MultiPartParser(
        request.headers, _bounded(request), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD
    )
    try:
        return await parser.parse()
    except (MultiPartException, HTTPException) as error:
        message = error.message if isinstance(error, MultiPartException) else str(error.detail)
        raise RefusedError(400, f"the multipart body can't be read ({message})", "invalid_multipart") from None


async def _bounded(request: Request) -> AsyncGenerator[bytes, None]:
    """The body; raises RefusedError where it is too large, whatever its length was declared to be."""
    total = 0
    async for piece in request.stream():
        total += len(piece)
        if total > MAX_BODY:
            raise _too_large()
        yield piece


async def drain(request: Request) -> None:
    """Read what is left of a refused request, within bounds: a client that still sends reads no answer."""
    total = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            async for piece in request.stream():
                total += len(piece)
                if total > MAX_DRAINED:
                    return
    except (ClientDisconnect, RuntimeError, TimeoutError):
        return


def _too_large() -> RefusedError:
    return RefusedError(413, f"the file is larger than {MAX_FILE >> 20} MB; send FLAC, or parts", "too_large", "file")


def _fields(form: FormData) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if name not in FIELDS:
            shown = name[:40].encode("ascii", "backslashreplace").decode()
            raise RefusedError(400, f"there is no field {shown}; use {', '.join(FIELDS)}", "unknown_field", shown)
        if isinstance(value, str):
            fields.setdefault(name.removesuffix("[]"), []).append(value)
    for name, values in fields.items():
        if len(values) > 1 and name != "timestamp_granularities":
            raise RefusedError(400, f"{name} is given twice", "invalid_field", name)
    return fields


async def _file(form: FormData) -> bytes:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise RefusedError(400, "file is missing: send the audio as a file", "missing_file", "file")
    if file.size and file.size > MAX_FILE:
        raise _too_large()
    data = await file.read()
    if not data:
        raise RefusedError(400, "the file is empty", "empty_file", "file")
    return data


def _checked(data: bytes, fields: dict[str, list[str]], facts: ModelFacts) -> Upload:
    one = {name: values[0] for name, values in fields.items()}
    if not one.get("model"):
        raise RefusedError(400, "model is missing; GET /v1/models lists the names", "missing_model", "model")
    kind = one.get("response_format") or "json"
    if kind not in FORMATS:
        raise RefusedError(400, f"use one of {', '.join(FORMATS)}", "invalid_format", "response_format")
    if kind in TIMED and not facts.has_times:
        raise RefusedError(400, f"the model has no times for {kind}; use json or text", "no_times", "response_format")
    if one.get("stream", "").lower() not in ("", "false", "0"):
        raise RefusedError(400, "answers are not streamed; leave stream out", "unsupported", "stream")
    if one.get("chunking_strategy", "auto") not in ("", "auto"):
        raise RefusedError(400, "only auto: recordings are cut in pauses", "unsupported", "chunking_strategy")
    language = one.get("language", "")
    return Upload(
        data,
        one["model"],
        language,
        kind,
        _granularities(fields.get("timestamp_granularities", ()), kind),
        (*_no_language(language, facts), *(["prompt"] if one.get("prompt") else []), *_warm(one.get("temperature"))),
    )


def _granularities(values: Sequence[str], kind: str) -> tuple[Granularity, ...]:
    if wrong := [value for value in values if value not in GRANULARITIES]:
        shown = wrong[0][:40].encode("ascii", "backslashreplace").decode()
        raise RefusedError(400, f"use word, segment or both, not {shown}", "invalid_field", "timestamp_granularities")
    if values and kind != "verbose_json":
        problem = "needs response_format=verbose_json"
        raise RefusedError(400, problem, "invalid_field", "timestamp_granularities")
    return cast(tuple[Granularity, ...], tuple(values)) or ("segment",)


def _no_language(language: str, facts: ModelFacts) -> list[str]:
    """Name the language if the model takes none. Raises RefusedError for one that a multilingual model lacks."""
    if not language:
        return []
    if not LANGUAGE.fullmatch(language):
        raise RefusedError(400, "use a code such as de or en-GB", "invalid_language", "language")
    short = re.split("[-_]", language.lower())[0]
    if len(facts.languages) > 1 and short not in facts.languages:
        raise RefusedError(400, f"the model knows {', '.join(facts.languages)}", "invalid_language", "language")
    return [] if facts.languages else ["language"]


def _warm(temperature: str | None) -> list[str]:
    try:
        value = float(temperature or 0)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise RefusedError(400, "use a number from 0 to 1", "invalid_field", "temperature")
    return ["temperature"] if value else []  # decoding takes the best token, without chance
