"""A Hugging Face hub on loopback, as far as huggingface_hub uses it; `HF_ENDPOINT` points to its `endpoint`.

A route is one row of `ROUTES`: the method, a pattern of the path, and the function that answers. So a new part of the
hub's API, such as uploads, is one function and one row.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from tests.support import hub_upload
from tests.support.hub_repository import DATE, Commit, Repository


@dataclass(frozen=True)
class Request:
    """One request: `number` counts those of the same path from 0."""

    method: str
    path: str
    number: int
    token: str | None


class Hub:
    """The server, as a context manager.

    Attributes:
        repositories: By name.
        requests: All requests so far.
        token: The only token that opens gated and private repositories, and that writes.
        owners: Whose repositories it writes.
        large: Uploaded large files by their SHA-256.
        on_request: Called before each answer.
        keep: (request, size) -> bytes after which the connection is cut, or None; for downloads.
    """

    def __init__(self, token: str = "") -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.connections: list[socket.socket] = []
        self.token = token
        self.owners = {"org"}
        self.large: dict[str, bytes] = {}
        self.keep: Callable[[Request, int], int | None] = lambda request, size: None
        self.on_request: Callable[[Request], None] = lambda request: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop: connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:  # those that clients keep open
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add(self, name: str, content: Path | dict[str, bytes], gated: bool = False) -> Repository:
        """Add a repository with the files of a folder."""
        files = content if isinstance(content, dict) else read_files(content)
        self.repositories[name] = Repository(name, gated=gated)
        self.repositories[name].commit(files)
        return self.repositories[name]

    def downloads(self) -> list[str]:
        """Paths of all downloads."""
        return [request.path for request in self.requests if request.method == "GET" and "/resolve/" in request.path]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables for a process that uses this hub and a cache of its own."""
        variables = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        variables["HF_HUB_DISABLE_XET"] = "1"
        return variables | ({"HF_TOKEN": token} if token else {})

    def use(self, patch: pytest.MonkeyPatch, home: Path) -> None:
        """Point this process to this hub and an empty cache: huggingface_hub reads its variables at import."""
        constants = huggingface_hub.constants
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # this server has LFS only
        patch.setattr(constants, "HF_HOME", str(home))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.delenv("HF_TOKEN", raising=False)


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- Answers ---------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, *_: object) -> None:
        """No log."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path)
        authorization = self.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        number = sum(past.path == path and past.method == self.command for past in self.hub.requests)
        self.request_seen = Request(self.command, path, number, token)
        self.query = dict(urllib.parse.parse_qsl(query))
        self.hub.requests.append(self.request_seen)
        self.hub.on_request(self.request_seen)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for method, pattern, answer in ROUTES:
            if self.command == method and (found := re.fullmatch(pattern, path)):
                answer(self, body, **found.groupdict())
                return
        self.refuse(404, "", "no such route")

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def send_json(self, content: object) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            kept = self.hub.keep(self.request_seen, len(body)) if "ETag" in headers else None
            self.wfile.write(body[:kept])
            self.close_connection = kept is not None

    def repository(self, repo: str, revision: str) -> tuple[Repository, Commit] | None:
        """The repository at a revision; None if it was refused, as the hub does."""
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self.request_seen.token != self.hub.token):
            self.refuse(404 if self.request_seen.token else 401, "RepoNotFound", "Repository not found")
        elif (commit := found.at(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return found, commit
        return None


def _info(handler: _Handler, body: bytes, repo: str, revision: str = "main") -> None:  # noqa: ARG001
    if found := handler.repository(repo, revision):
        siblings = [{"rfilename": name, "size": len(found[1].files[name])} for name in sorted(found[1].files)]
        answer = {"id": repo, "sha": found[1].id, "private": found[0].private, "siblings": siblings}
        handler.send_json(answer | {"cardData": hub_upload.card_of(found[1].files)})


def _commits(handler: _Handler, body: bytes, repo: str, revision: str) -> None:  # noqa: ARG001
    if found := handler.repository(repo, revision):
        commit: Commit | None = found[1]
        listed = []
        while commit:
            listed.append({"id": commit.id, "authors": [], "date": DATE, "title": "", "message": ""})
            commit = commit.parent
        handler.send_json(listed)


def _discussions(handler: _Handler, body: bytes, repo: str) -> None:  # noqa: ARG001
    if found := handler.repository(repo, "main"):
        author = handler.query.get("author")
        pulls = [pull for pull in found[0].discussions if author in (None, pull["author"]["name"])]
        handler.send_json({"discussions": pulls, "count": len(pulls), "start": 0})


def _file(handler: _Handler, body: bytes, repo: str, revision: str, file: str) -> None:  # noqa: ARG001
    found = handler.repository(repo, revision)
    if not found:
        return
    repository, commit = found
    if repository.gated and (not handler.hub.token or handler.request_seen.token != handler.hub.token):
        status = 403 if handler.request_seen.token else 401
        handler.refuse(status, "GatedRepo", f"Access to model {repo} is restricted. Please log in.")
    elif file not in commit.files:
        handler.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.id})
    else:
        content = commit.files[file]
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit.id}
        part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        handler.send(206 if start else 200, content[start:], headers | part)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", rf"/api/models/{_REPO}", _info),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", _info),
    ("GET", rf"/api/models/{_REPO}/commits/{_REVISION}", _commits),
    ("GET", rf"/api/models/{_REPO}/discussions", _discussions),
    ("HEAD", rf"/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _file),
    ("GET", rf"/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _file),
    *hub_upload.ROUTES,
]
