"""The folder of a source corpus, and the queries that every layout makes of it."""

import os
import posixpath
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from foldray import storage
from foldray.errors import UserError

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aif", ".aiff", ".au", ".caf", ".w64",
)  # fmt: skip
"""Endings of the audio files that libsndfile reads."""
UNREAD_SUFFIXES = (
    ".m4a", ".mp4", ".aac", ".3gp", ".webm", ".weba", ".mka", ".mkv", ".mov", ".wma", ".amr", ".ape", ".wv", ".ac3",
)  # fmt: skip
"""Endings of audio (or film) that is not decoded."""


@dataclass(frozen=True)
class SourceFolder:
    """The folder of a source corpus, whose listings are requested once. Hidden files and folders are left out.

    Attributes:
        root: URI of the folder.
        audio_root: Where relative audio paths start; None for the folder of their manifest.
        follow_links: Whether text files may be links out of the folder.
        needs_text: Whether a table without a column of texts is refused.
    """

    root: str
    audio_root: str | None = None
    follow_links: bool = False
    needs_text: bool = True
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

    def text_problem(self, uri: str) -> tuple[str, str] | None:
        """Why a file must not be read as text, None if it may: a link could make any file of this machine a transcript.

        Args:
            uri: A manifest, table or transcript of the folder.
        """
        if self.follow_links or not storage.is_local(uri):
            return None
        real, home = os.path.realpath(storage.absolute(uri)), os.path.realpath(storage.absolute(self.root))
        if posixpath.commonpath([real, home]) == home:
            return None
        return "unsafe_path", f"{file_name(uri)} is a link to {real}, outside the corpus; set corpus.follow_links=true"

    def text_file(self, uri: str) -> str:
        """The URI of a manifest or table that is read as text. Raises UserError for one with a `text_problem`."""
        if problem := self.text_problem(uri):
            raise UserError(uri, problem[1])
        return uri

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


def composed(name: str) -> str:
    """A name in the form NFC, by which it is compared: macOS writes names of files decomposed."""
    return unicodedata.normalize("NFC", name)


def is_audio(name: str) -> bool:
    """Whether a file's name has an ending that libsndfile reads."""
    return name.lower().endswith(AUDIO_SUFFIXES)


def is_unread_audio(name: str) -> bool:
    """Whether a file's name has an ending of audio that is not decoded."""
    return name.lower().endswith(UNREAD_SUFFIXES)


def audio_files(names: Iterable[str], texts: Container[str]) -> list[str]:
    """The audio files of a tree, whose texts have paths without endings as keys, in the form NFC.

    Those of formats that are not decoded are among them only where the stem has a text and no other audio: a film
    beside a corpus is none of its utterances, but a recording with a text is set aside by its name.
    """
    given = list(names)
    read = [name for name in given if is_audio(name)]
    stems = {composed(stem(name)) for name in read}
    unread = ((name, composed(stem(name))) for name in given if is_unread_audio(name))
    return read + [name for name, key in unread if key in texts and key not in stems]


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
