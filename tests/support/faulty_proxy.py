"""A loopback proxy in front of an S3 server that injects faults into chosen requests."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

FaultKind = Literal["503", "429", "cut", "lost", "lost_win"]
"""503 and 429: the status returned. cut: the connection closes in the middle of the request's body. lost: the server
gets the request, the client no response. lost_win: as lost, but only for responses with status 200."""


@dataclass(frozen=True)
class Request:
    """A request as fault functions receive it; `number` counts all requests from 0."""

    number: int
    method: str
    key: str


Fault = Callable[[Request], FaultKind | None]
"""Chooses the fault of a request; None forwards it unchanged."""

CODES = {"503": "SlowDown", "429": "TooManyRequests"}


class FaultyProxy:
    """The proxy, as a context manager; `fault` may be set at any time, `injected` counts faults by kind."""

    def __init__(self, endpoint: str) -> None:
        self._upstream = endpoint.removeprefix("http://")
        self._numbers = 0
        self._lock = threading.Lock()
        self.fault: Fault = lambda request: None
        self.injected: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _choose(self, method: str, path: str) -> FaultKind | None:
        with self._lock:
            kind = self.fault(Request(self._numbers, method, path.partition("?")[0]))
            self._numbers += 1
            return kind

    def _count(self, kind: FaultKind) -> None:
        with self._lock:
            self.injected[kind] += 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            log_message = lambda self, *_: None  # noqa: E731

            def _forward(self) -> None:
                kind = proxy._choose(self.command, self.path)
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length // 2 if kind == "cut" else length)
                if kind in CODES:
                    proxy._count(kind)
                    self._respond(int(kind), {}, f"<Error><Code>{CODES[kind]}</Code></Error>".encode())
                    return
                upstream = http.client.HTTPConnection(proxy._upstream, timeout=30)
                try:
                    upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() != "expect":
                            upstream.putheader(name, value)  # Host included: it is part of the signature
                    upstream.endheaders(body)
                    if kind == "cut":
                        proxy._count(kind)
                        self.close_connection = True
                        return
                    content = (response := upstream.getresponse()).read()
                finally:
                    upstream.close()
                if kind == "lost" or (kind == "lost_win" and response.status == 200):
                    proxy._count(kind)
                    self.close_connection = True
                    return
                headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP}
                length = int(response.getheader("Content-Length", len(content)))  # HEAD: a length without content
                self._respond(response.status, headers, content, length)

            def _respond(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

        return Handler


HOP = ("connection", "content-length", "transfer-encoding", "keep-alive")
"""Hop-by-hop headers, which a proxy does not forward; bodies are forwarded whole."""
