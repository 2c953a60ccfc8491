"""The folder of a source corpus, and the queries that every layout makes of it."""

import posixpath
from dataclasses import dataclass, field

from foldray import storage

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aif", ".aiff", ".au", ".caf", ".w64",
)  # fmt: skip
"""Endings of the audio files that libsndfile reads."""


@dataclass(frozen=True)
class SourceFolder:
    """The folder of a source corpus, whose listings are requested once. Hidden files and folders are left out.

    Attributes:
        root: URI of the folder.
        audio_root: Where relative audio paths start; None for the folder of their manifest.
    """

    root: str
    audio_root: str | None = None
    _files: dict[str, list[str]] = field(default_factory=dict, repr=False)
    _folders: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def files(self, sub: str = "") -> list[str]:
        """Names of the files directly in a sub-folder, sorted; empty if it does not exist."""
        if sub not in self._files:
            self._files[sub] = _visible(storage.list_files(self.uri(sub))) if self._exists(sub) else []
        return self._files[sub]

    def folders(self, sub: str = "") -> list[str]:
        """Names of the folders directly in a sub-folder, sorted; empty if it does not exist."""
        if sub not in self._folders:
            self._folders[sub] = _visible(storage.list_folders(self.uri(sub))) if self._exists(sub) else []
        return self._folders[sub]

    def _exists(self, sub: str) -> bool:
        """Whether a sub-folder exists, from its parent's listing: no other request is needed."""
        above, _, name = sub.rpartition("/")
        return not sub or name in self.folders(above)

    def uri(self, *parts: str) -> str:
        """The URI of a path below the folder."""
        given = [part for part in parts if part]
        return storage.join(self.root, *given) if given else self.root

    def audio(self, path: str, base: str) -> str:
        """The URI of an audio path in a manifest. Relative paths start at `audio_root`, or else at `base`."""
        if "://" in path or path.startswith("/"):
            return path
        start, parts = self.audio_root or base, path.split("/")
        if not {".", ".."} & set(parts):
            return storage.join(start, path)
        for part in parts:  # resolved by name: the keys of an object store have no '..'
            if part == "..":
                start = parent(start)
            elif part not in ("", "."):
                start = storage.join(start, part)
        return start


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def parent(uri: str) -> str:
    """The folder of a file or folder (a bucket is its own); a URI's options stay at the end."""
    base, mark, options = uri.partition("?") if not storage.is_local(uri) else (uri, "", "")
    above = base.rpartition("/")[0]
    return (base if above.endswith(":/") else above) + mark + options


def file_name(uri: str) -> str:
    """The last part of a URI, without options."""
    return storage.filesystem_path(uri).rsplit("/", 1)[-1]


def stem(path: str) -> str:
    """A path without its last ending."""
    return posixpath.splitext(path)[0]


def is_audio(name: str) -> bool:
    """Whether a file's name has an ending that libsndfile reads."""
    return name.lower().endswith(AUDIO_SUFFIXES)


def visible_tree(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder by its relative path, without hidden files and folders."""
    tree = storage.list_tree(uri)
    return {name: size for name, size in tree.items() if not any(part.startswith(".") for part in name.split("/"))}


def find_shards(source: SourceFolder, name: str, endings: tuple[str, ...]) -> list[str]:
    """`<name><ending>` or `<name>-*<ending>`, in the folder or in `data/`; else all with these endings in `<name>/`."""
    above, _, own = name.rpartition("/")
    for sub in (above, "/".join(filter(None, (above, "data")))):
        files = [file for file in source.files(sub) if file.endswith(endings)]
        found = [f for f in files if f.startswith(f"{own}-") or f == own or f in {own + ending for ending in endings}]
        if found:
            return [source.uri(sub, file) for file in found]
    return [source.uri(name, file) for file in source.files(name) if file.endswith(endings)]
