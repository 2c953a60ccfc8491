"""A proxy on loopback before an S3 server, which spoils the requests it is told to spoil."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Way = Literal["503", "429", "cut", "lost", "lost_win"]


@dataclass(frozen=True)
class Request:
    """What a fault may depend on: `number` counts all requests from 0."""

    number: int
    method: str
    key: str


Fault = Callable[[Request], Way | None]
"""How to spoil a request: 503 or 429, cut in the middle of its body, or served with the answer lost on the way back
(lost_win: only where the server took it)."""

ANSWERS = {"503": "SlowDown", "429": "TooManyRequests"}


class FaultyProxy:
    """The proxy while its `with` lasts; set `fault` at any time, `spoiled` counts what was done, by way."""

    def __init__(self, endpoint: str) -> None:
        self._behind = endpoint.removeprefix("http://")
        self._numbers = 0
        self._lock = threading.Lock()
        self.fault: Fault = lambda request: None
        self.spoiled: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _way(self, method: str, path: str) -> Way | None:
        with self._lock:
            way = self.fault(Request(self._numbers, method, path.partition("?")[0]))
            self._numbers += 1
            return way

    def _count(self, way: Way) -> None:
        with self._lock:
            self.spoiled[way] += 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

            def _pass(self) -> None:
                way = proxy._way(self.command, self.path)
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length // 2 if way == "cut" else length)
                if way in ANSWERS:
                    proxy._count(way)
                    self._answer(int(way), {}, f"<Error><Code>{ANSWERS[way]}</Code></Error>".encode())
                    return
                behind = http.client.HTTPConnection(proxy._behind, timeout=30)
                try:
                    behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() != "expect":
                            behind.putheader(name, value)  # the Host too: it is signed
                    behind.endheaders(body)
                    if way == "cut":
                        proxy._count(way)
                        self.close_connection = True
                        return
                    answer = behind.getresponse()
                    said = answer.read()
                finally:
                    behind.close()
                if way == "lost" or (way == "lost_win" and answer.status == 200):
                    proxy._count(way)
                    self.close_connection = True
                    return
                headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
                self._answer(answer.status, headers, said, int(answer.getheader("Content-Length", len(said))))

            def _answer(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

        return Handler


HOP = ("connection", "content-length", "transfer-encoding", "keep-alive")
"""Headers that are between two neighbours; bodies are passed on whole."""
