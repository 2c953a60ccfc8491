"""Repositories of the hub in `tests.support.hub`: files at commits, branches and pull requests."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Commit:
    """Files at one commit, and the commit before it."""

    id: str
    files: dict[str, bytes]
    parent: "Commit | None" = None


@dataclass
class Repository:
    """A model repository.

    Attributes:
        refs: Commits of branches and pull requests, by revision.
        gated: Whether files need a token.
        private: Whether all of it does.
        discussions: Pull requests, as the API describes them.
    """

    name: str
    refs: dict[str, Commit] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    discussions: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], ref: str = "main", parent: Commit | None = None) -> Commit:
        """Make `files` the content of a revision."""
        parent = parent or self.refs.get(ref)
        content = repr((sorted(files.items()), parent and parent.id))
        self.refs[ref] = Commit(hashlib.sha1(content.encode()).hexdigest(), files, parent)
        return self.refs[ref]

    def at(self, revision: str) -> Commit | None:
        """The commit that a branch, a pull request or an id names."""
        return self.refs.get(revision) or next((c for c in self.refs.values() if c.id == revision), None)

    def pull_request(self, title: str, author: str, files: dict[str, bytes]) -> str:
        """Open a pull request on `main`; returns its revision."""
        number = len(self.discussions) + 1
        self.commit(files, f"refs/pr/{number}", self.refs["main"])
        about = {"title": title, "num": number, "author": {"name": author}, "status": "open", "isPullRequest": True}
        where = {"createdAt": DATE, "repo": {"name": self.name, "type": "model"}}
        self.discussions.append(about | where)
        return f"refs/pr/{number}"
