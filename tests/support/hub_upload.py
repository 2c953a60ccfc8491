"""Routes of `tests.support.hub` that write: pages, large files and commits, as huggingface_hub uses them."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import yaml

REGULAR_BYTES = 1000
"""Larger files go through LFS, and all weights."""
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0")
FRONT = re.compile(rb"---\n(.*?\n)---\n", re.DOTALL)


def card_of(files: dict[str, bytes]) -> dict[str, Any]:
    """The metadata of README.md."""
    found = FRONT.match(files.get("README.md", b""))
    return yaml.safe_load(found[1]) if found else {}


def may_write(handler: Any, repo: str) -> bool:
    """Whether the request's token may write to a page's owner; if not, it was refused."""
    token = handler.request_seen.token
    if not token or token != handler.hub.token:
        handler.refuse(401, "", "Invalid credentials in Authorization header")
    elif repo.partition("/")[0] not in handler.hub.owners:
        handler.refuse(403, "", "You don't have the rights to write there")
    else:
        return True
    return False


def create(handler: Any, body: bytes) -> None:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if not may_write(handler, name):
        return
    if name in handler.hub.repositories:
        handler.refuse(409, "", "You already created this model repo")
        return
    repository = handler.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
    repository.private = asked.get("visibility") == "private"
    handler.send_json({"url": f"{handler.hub.endpoint}/{name}"})


def validate(handler: Any, body: bytes) -> None:
    card = card_of({"README.md": json.loads(body)["content"].encode()})
    if card.get("license") in (None, *LICENSES):
        handler.send_json({"errors": [], "warnings": []})
        return
    answer = json.dumps({"errors": [{"message": '"license" must be one of the list'}], "warnings": []})
    handler.send(400, answer.encode(), {"Content-Type": "application/json"})


def preupload(handler: Any, body: bytes, repo: str, revision: str) -> None:
    found = may_write(handler, repo) and handler.repository(repo, revision)
    if found:
        present = found[1].files
        answers = [_mode(file, present.get(file["path"])) for file in json.loads(body)["files"]]
        handler.send_json({"files": answers})


def _mode(file: dict[str, Any], present: bytes | None) -> dict[str, object]:
    is_large = file["path"].endswith(".safetensors") or file["size"] > REGULAR_BYTES
    answer = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
    if present is None:
        return answer
    git = hashlib.sha1(b"blob %d\0" % len(present) + present).hexdigest()
    return {**answer, "oid": hashlib.sha256(present).hexdigest() if is_large else git}


def batch(handler: Any, body: bytes, repo: str) -> None:
    if may_write(handler, repo):
        objects = [_upload(handler, each) for each in json.loads(body)["objects"]]
        handler.send_json({"transfer": "basic", "objects": objects})


def _upload(handler: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    if wanted["oid"] in handler.hub.large:
        return wanted
    return {**wanted, "actions": {"upload": {"href": f"{handler.hub.endpoint}/lfs/{wanted['oid']}"}}}


def store(handler: Any, body: bytes, oid: str) -> None:
    assert hashlib.sha256(body).hexdigest() == oid
    handler.hub.large[oid] = body
    handler.send(200, b"", {})


def commit(handler: Any, body: bytes, repo: str, revision: str) -> None:
    found = may_write(handler, repo) and handler.repository(repo, revision)
    if not found:
        return
    lines = [json.loads(line) for line in body.splitlines()]
    repository, parent = found
    if lines[0]["value"].get("parentCommit") != parent.id:
        handler.refuse(412, "", "A commit has happened since. Please refresh and try again.")
        return
    files = dict(parent.files)
    for line in lines[1:]:
        value, path = line["value"], line["value"]["path"]
        if line["key"] == "deletedFile":
            del files[path]
        else:
            is_large = line["key"] == "lfsFile"
            files[path] = handler.hub.large[value["oid"]] if is_large else base64.b64decode(value["content"])
    made = repository.commit(files, revision)
    handler.send_json({"commitUrl": f"{handler.hub.endpoint}/{repo}/commit/{made.id}", "commitOid": made.id})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)", store),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", commit),
]
