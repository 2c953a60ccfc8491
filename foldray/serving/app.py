"""The HTTP API: OpenAI's transcriptions and models, health and metrics, as an ASGI application."""

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from foldray.errors import one_line
from foldray.runtime.terminal import print_status
from foldray.serving.address import is_loopback
from foldray.serving.answers import TIMED, as_object, as_text
from foldray.serving.messages import Answer, Ask, AskedDepth, ModelFacts, Refusal
from foldray.serving.metrics import ServerMetrics
from foldray.serving.names import ServedNames
from foldray.serving.uploads import RefusedError, Upload, drain, read_upload

MOST_REQUESTS = 64
"""Requests in progress; more are refused before their bodies are read."""
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class Backend(Protocol):
    """What transcribes."""

    async def transcribe(self, data: bytes, ask: Ask) -> Answer | Refusal:
        """Transcribe an upload."""

    async def is_ready(self) -> bool:
        """Whether a replica answers."""


@dataclass(frozen=True)
class ApiOptions:
    """How the API is served.

    Attributes:
        names: The names of the model's depths.
        facts: What the model can do.
        key: The bearer token; without one, only requests that address this machine by a loopback name are answered.
    """

    names: ServedNames
    facts: ModelFacts
    key: str | None = None


Handler = Callable[[Request], Awaitable[Response]]


def build_app(backend: Backend, options: ApiOptions) -> Starlette:
    """Build the application.

    Args:
        backend: What transcribes.
        options: Names, facts and key.

    Example:
        >>> app = build_app(backend, ApiOptions(ServedNames("an4", (6, 12), 12), ModelFacts((6, 12))))
        >>> uvicorn.run(app, host="127.0.0.1", port=8000)
    """
    api = _Api(backend, options)
    return Starlette(
        routes=[
            Route("/v1/audio/transcriptions", api.guarded(api.transcriptions), methods=["POST"]),
            Route("/v1/models", api.guarded(api.models)),
            Route("/v1/models/{name}", api.guarded(api.model)),
            Route("/metrics", api.guarded(api.metrics)),
            Route("/health", api.health),
        ],
        exception_handlers={404: _unknown_path, 405: _wrong_method},
    )


class _Api:
    """The handlers of all routes."""

    def __init__(self, backend: Backend, options: ApiOptions) -> None:
        self._backend, self._options = backend, options
        self._metrics = ServerMetrics()
        self._running = 0
        self._began = int(time.time())

    def guarded(self, handler: Handler) -> Handler:
        """A handler that only those with the key reach, and whose refusals and failures are JSON."""

        async def handle(request: Request) -> Response:
            number = uuid.uuid4().hex
            refusal: Refusal | None = _unauthorized(request, self._options.key)
            try:
                response = error_response(refusal) if refusal else await handler(request)
            except RefusedError as refused:
                refusal, response = refused.refusal, error_response(refused.refusal)
            except ClientDisconnect:
                refusal = Refusal(499, "the client has gone", "client_gone")
                response = error_response(refusal)
            except Exception as error:
                print_status(f"request {number} failed: {type(error).__name__}: {one_line(error)}")
                refusal = Refusal(500, "the server failed; its log names this request's x-request-id", "server_error")
                response = error_response(refusal)
            if refusal:
                self._metrics.refused(refusal)
                await drain(request)
            response.headers["x-request-id"] = number
            return response

        return handle

    async def transcriptions(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions."""
        arrived = time.monotonic()
        if self._running >= MOST_REQUESTS:
            raise RefusedError(503, f"{MOST_REQUESTS} requests are in progress; try again", "overloaded")
        self._running += 1
        self._metrics.in_progress.inc()
        try:
            upload = await read_upload(request, self._options.facts)
            answer = await self._answer(request, upload, arrived)
        finally:
            self._running -= 1
            self._metrics.in_progress.dec()
        self._metrics.answered(answer, time.monotonic() - arrived)
        return _formatted(upload, answer)

    async def _answer(self, request: Request, upload: Upload, arrived: float) -> Answer:
        depth = self._options.names.depth_of(upload.model)
        if isinstance(depth, Refusal):
            raise RefusedError(depth.status, depth.message, depth.code, depth.param)
        ask = Ask(depth, upload.kind in TIMED, upload.language, time.monotonic() - arrived)
        found = await _unless_gone(request, self._backend.transcribe(upload.data, ask))
        if isinstance(found, Refusal):
            raise RefusedError(found.status, found.message, found.code, found.param)
        return found

    async def models(self, request: Request) -> Response:  # noqa: ARG002
        """GET /v1/models: a row for the model and one for each depth."""
        rows = [self._row(name, depth) for name, depth in self._options.names.all()]
        return JSONResponse({"object": "list", "data": rows})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        depth = self._options.names.depth_of(name)
        if isinstance(depth, Refusal):
            raise RefusedError(depth.status, depth.message, depth.code, depth.param)
        return JSONResponse(self._row(name, depth))

    def _row(self, name: str, depth: AskedDepth) -> dict[str, object]:
        chosen = "by latency" if depth is None else depth
        return {"id": name, "object": "model", "created": self._began, "owned_by": "foldray", "depth": chosen}

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """GET /metrics."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """GET /health: 200 if a replica answers, else 503."""
        ready = await self._backend.is_ready()
        return JSONResponse({"status": "ok" if ready else "no replica answers"}, 200 if ready else 503)


async def _unless_gone(request: Request, answer: Awaitable[Answer | Refusal]) -> Answer | Refusal:
    """Wait for an answer; cancel it if the client disconnects, so that nothing is computed for nobody."""
    working = asyncio.ensure_future(answer)
    listening = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _formatted(upload: Upload, answer: Answer) -> Response:
    found = answer.transcript
    headers = {"x-foldray-depth": str(found.depth)}
    if upload.ignored:
        headers["x-foldray-ignored"] = ", ".join(upload.ignored)
    if upload.kind in ("json", "verbose_json"):
        content = as_object(found, upload.kind, upload.granularities, upload.language, upload.ignored)
        return JSONResponse(content, headers=headers)
    return PlainTextResponse(as_text(found, upload.kind), headers=headers)


def _unauthorized(request: Request, key: str | None) -> Refusal | None:
    if key is None:
        host = re.sub(r":\d+$", "", request.headers.get("host", ""))
        if not is_loopback(host):  # a web page whose name was bound to 127.0.0.1
            return Refusal(403, "without FOLDRAY_API_KEY only localhost is answered", "forbidden_host")
        return None
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        return Refusal(401, "the API key is missing or wrong", "invalid_api_key")
    return None


def error_response(refusal: Refusal) -> Response:
    """A refusal in the form of OpenAI's errors."""
    kind = KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    body = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "1"}}.get(refusal.status)
    return JSONResponse({"error": body}, refusal.status, headers)


async def _unknown_path(request: Request, error: Exception) -> Response:  # noqa: ARG001
    message = "there is no such path; use POST /v1/audio/transcriptions, GET /v1/models, /health or /metrics"
    return error_response(Refusal(404, message, "unknown_path"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    allowed = ", ".join(sorted((getattr(error, "headers", None) or {}).get("Allow", "").split(", ")))
    response = error_response(Refusal(405, f"this path takes {allowed}, but not {request.method}", "wrong_method"))
    response.headers["allow"] = allowed
    return response
