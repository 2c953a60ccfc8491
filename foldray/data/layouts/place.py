"""A corpus folder, and the few things that every layout asks of it."""

import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from foldray import storage

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aif", ".aiff", ".au", ".caf", ".w64",
)  # fmt: skip
"""Endings of the audio files that libsndfile reads."""

_READERS = 16


@dataclass(frozen=True)
class Place:
    """A corpus folder; audio_root: where relative audio paths begin, None for the folder of their manifest.

    Listings are made once; hidden files and folders are in none of them.
    """

    folder: str
    audio_root: str | None = None
    _files: dict[str, list[str]] = field(default_factory=dict, repr=False)
    _folders: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def files(self, sub: str = "") -> list[str]:
        """Names of the files directly in a sub-folder, sorted; empty if it is not there."""
        if sub not in self._files:
            self._files[sub] = _visible(storage.list_files(self.uri(sub))) if self._has(sub) else []
        return self._files[sub]

    def folders(self, sub: str = "") -> list[str]:
        """Names of the folders directly in a sub-folder, sorted; empty if it is not there."""
        if sub not in self._folders:
            self._folders[sub] = _visible(storage.list_folders(self.uri(sub))) if self._has(sub) else []
        return self._folders[sub]

    def _has(self, sub: str) -> bool:
        """Whether a sub-folder is there: its parent's listing says so, without another request."""
        above, _, name = sub.rpartition("/")
        return not sub or name in self.folders(above)

    def uri(self, *parts: str) -> str:
        """The URI of a path below the folder."""
        given = [part for part in parts if part]
        return storage.join(self.folder, *given) if given else self.folder

    def audio(self, path: str, base: str) -> str:
        """The URI of an audio path as a manifest gives it; relative ones begin at audio_root or else `base`."""
        if "://" in path or path.startswith("/"):
            return path
        start, parts = self.audio_root or base, path.split("/")
        if not {".", ".."} & set(parts):
            return storage.join(start, path)
        for part in parts:  # by name, since the keys of an object store know no '..'
            if part == "..":
                start = parent(start)
            elif part not in ("", "."):
                start = storage.join(start, part)
        return start


def _visible(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def parent(uri: str) -> str:
    """The folder of a file or folder, a bucket for itself; a URI's options stay at the end."""
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
    """Whether a file's name ends as those that libsndfile reads."""
    return name.lower().endswith(AUDIO_SUFFIXES)


def visible_tree(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder by its relative path, without hidden files and folders."""
    tree = storage.list_tree(uri)
    return {name: size for name, size in tree.items() if not any(part.startswith(".") for part in name.split("/"))}


def read_text(uri: str) -> str:
    """A text file; what is not UTF-8 becomes replacement characters, which text normalisation leaves out."""
    return storage.read_bytes(uri).decode("utf-8-sig", "replace")


def read_lines(uri: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    # Not splitlines(): texts may hold the other characters that Unicode counts as line ends.
    for number, line in enumerate(read_text(uri).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def read_texts(uris: Iterable[str]) -> Iterator[str]:
    """Many small text files, several at once: an object store answers each only after a while."""
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read_text, uris)


def find_shards(place: Place, name: str, endings: tuple[str, ...]) -> list[str]:
    """`<name><ending>` or `<name>-*<ending>`, beside or in `data/`; else all with these endings in `<name>/`."""
    above, _, own = name.rpartition("/")
    for sub in (above, "/".join(filter(None, (above, "data")))):
        files = [file for file in place.files(sub) if file.endswith(endings)]
        found = [f for f in files if f.startswith(f"{own}-") or f == own or f in {own + ending for ending in endings}]
        if found:
            return [place.uri(sub, file) for file in found]
    return [place.uri(name, file) for file in place.files(name) if file.endswith(endings)]
