"""The files that utterances name: their sizes, and the one that is meant where a name is written in another way."""

import posixpath
from collections import defaultdict
from dataclasses import replace

from foldray import storage
from foldray.data.layouts.source_folder import SourceFolder, composed, is_audio, stem
from foldray.data.utterance import Utterance


def with_sizes(utterances: list[Utterance], source: SourceFolder) -> list[Utterance]:
    """The utterances with the sizes of their files. Those in containers have one, and those ruled out need none.

    A file that is missing under its name is looked for in its folder under the same name in another Unicode form (macOS
    writes decomposed names), with slashes for backslashes, and with an audio ending where the name has none.
    """
    folders = [source.root, *filter(None, [source.audio_root])]
    wanted = {u.audio for u in utterances if u.bytes is None and not u.problem}
    sizes = _sizes(wanted, folders)
    listings = _Listings()
    missing = [uri for uri in wanted if sizes.get(uri) is None]
    meant = {uri: twin for uri in missing if (twin := _twin(uri, folders, listings))}
    if meant:
        sizes |= _sizes(set(meant.values()), folders)
    return [
        replace(u, audio=meant.get(u.audio, u.audio), bytes=sizes.get(meant.get(u.audio, u.audio)))
        if u.bytes is None and not u.problem
        else u
        for u in utterances
    ]


def _sizes(wanted: set[str], folders: list[str]) -> dict[str, int | None]:
    """Bytes of each file, None where it is missing."""
    sizes: dict[str, int | None] = {}
    for folder in (folder for folder in folders if not storage.is_local(folder)):
        # One listing for all files below it, instead of one request for each.
        below = {uri: inside for uri in wanted - sizes.keys() if (inside := inside_of(uri, folder))}
        tree = storage.list_tree(folder) if below else {}
        sizes.update({uri: tree.get(inside) for uri, inside in below.items()})
    known = [uri for uri in sorted(wanted - sizes.keys()) if storage.is_known(uri)]
    sizes.update(zip(known, storage.file_sizes(known), strict=True))
    return sizes


def inside_of(uri: str, folder: str) -> str | None:
    """The path of a file below a folder, None if it is elsewhere."""
    path = storage.filesystem_path(uri).removeprefix(storage.filesystem_path(folder).rstrip("/") + "/")
    return path if uri == storage.join(folder, path) else None


def _twin(uri: str, folders: list[str], listings: "_Listings") -> str | None:
    """The only file below the corpus' folders that the URI of a missing file can mean."""
    for folder in folders:
        inside = inside_of(uri, folder)
        if inside and (not inside.isascii() or "\\" in inside or not is_audio(inside)):
            found = listings.find(folder, inside)
            if found:
                return found
    return None


class _Listings:
    """Names in folders by their composed form (NFC); every folder is listed once."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, bool], dict[str, list[str]]] = {}

    def find(self, folder: str, path: str) -> str | None:
        """The file below a folder whose path is the same but for its form, backslashes and a missing audio ending."""
        *above, name = posixpath.normpath(path.replace("\\", "/")).split("/")
        uri = folder
        for part, is_file in [*((part, False) for part in above), (name, True)]:
            found = self._in(uri, files=is_file).get(composed(part), [])
            if len(found) != 1:
                return None
            uri = storage.join(uri, found[0])
        return uri

    def _in(self, uri: str, *, files: bool) -> dict[str, list[str]]:
        if (uri, files) not in self._names:
            names: dict[str, list[str]] = defaultdict(list)
            listed = storage.list_files(uri) if files else storage.list_folders(uri)
            for name in listed:
                names[composed(name)].append(name)
            for name in filter(is_audio, listed) if files else ():
                names[composed(stem(name))].append(name)
            self._names[uri, files] = names
        return self._names[uri, files]
