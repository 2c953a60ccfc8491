"""Layouts where the folders say what there is: LibriSpeech's, and audio with a sidecar of text beside it."""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator

from foldray import storage
from foldray.data.layouts.place import Place, is_audio, read_texts, stem, visible_tree
from foldray.data.utterance import Utterance

_TRANSCRIPTS = ".trans.txt"
_SIDECARS = (".txt", ".lab")
_HOME = "LibriSpeech"


def find_librispeech(place: Place, name: str) -> list[str]:
    """The sub-folder `name`; for train every `train*`, for dev and test `<name>-clean` or else every `<name>*`.

    The corpus folder may also be the one that holds `LibriSpeech/`, as its archives unpack.
    """
    home = _HOME if _HOME in place.folders() else ""
    above = "/".join(filter(None, (home, posixpath.dirname(name))))
    own, folders = posixpath.basename(name), place.folders(above)
    for exact in (own, f"{own}-clean" if own in ("dev", "test") else own):
        if exact in folders:
            return [place.uri(above, exact)]
    return [place.uri(above, f) for f in folders if f.startswith(own)] if own in ("train", "dev", "test") else []


def holds_transcripts(uri: str) -> bool:
    """Whether a chapter of the folder's first speaker has transcripts, as LibriSpeech's have."""
    return _first_holds(uri, 2, lambda name: name.endswith(_TRANSCRIPTS))


def holds_audio(uri: str) -> bool:
    """Whether the folder has audio files, in itself or in the first of its sub-folders, three deep."""
    return _first_holds(uri, 3, is_audio)


def _first_holds(uri: str, deeper: int, wanted: Callable[[str], bool]) -> bool:
    if any(map(wanted, storage.list_files(uri))):
        return True
    folders = [name for name in storage.list_folders(uri) if not name.startswith(".")] if deeper else []
    return bool(folders) and _first_holds(storage.join(uri, folders[0]), deeper - 1, wanted)


def read_librispeech(uri: str, split: str, _place: Place) -> Iterator[Utterance]:
    """Utterances of `SPEAKER/CHAPTER/*.flac` with their texts from `SPEAKER-CHAPTER.trans.txt`."""
    tree = visible_tree(uri)
    said: dict[str, tuple[str | None, str]] = {}
    transcripts = [name for name in tree if name.endswith(_TRANSCRIPTS)]
    texts = read_texts(storage.join(uri, name) for name in transcripts)
    for name, text in zip(transcripts, texts, strict=True):
        for number, line in enumerate(text.split("\n"), start=1):
            key, _, said_there = line.strip().partition(" ")
            if key:
                said[posixpath.join(posixpath.dirname(name), key)] = said_there, f"{storage.join(uri, name)}:{number}"
    for name in filter(is_audio, tree):
        file = storage.join(uri, name)
        words, row = said.pop(stem(name), (None, file))
        yield Utterance(posixpath.basename(stem(name)), split, file, words, row, _speaker(name), bytes=tree[name])
    for key, (words, row) in said.items():
        problem = ("missing_file", "a transcript without audio beside it")
        yield Utterance(posixpath.basename(key), split, "", words, row, _speaker(key), problem=problem)


def _speaker(path: str) -> str:
    """The name of the first folder."""
    return path.partition("/")[0] if "/" in path else ""


# --- Audio with sidecars ---------------------------------------------------------------------------


def find_folder(place: Place, name: str) -> list[str]:
    """The sub-folder `name`, or the folder itself for `.`."""
    if name == ".":
        return [place.folder]
    above, _, own = name.rpartition("/")
    return [place.uri(name)] if own in place.folders(above) else []


def read_folder(uri: str, split: str, _place: Place) -> Iterator[Utterance]:
    """Utterances of the audio files anywhere below; the text is in a .txt or else .lab of the same stem beside each.

    Ids are paths without endings, speakers the names of the first folders. Audio without a sidecar has
    no text, a sidecar without audio is a missing file, and of two audio files of one stem the second is
    a duplicate.
    """
    tree = visible_tree(uri)
    audio: dict[str, list[str]] = defaultdict(list)
    for name in filter(is_audio, tree):
        audio[stem(name)].append(name)
    sidecars = {stem(name): name for ending in reversed(_SIDECARS) for name in tree if name.lower().endswith(ending)}
    texts = dict(zip(sidecars, read_texts(storage.join(uri, name) for name in sidecars.values()), strict=True))
    for key in sorted(audio.keys() | sidecars.keys()):
        text = texts[key].strip() if key in texts else None
        for name in audio[key]:
            file = storage.join(uri, name)
            problem = None if name == audio[key][0] else ("duplicate_id", f"beside it is {audio[key][0]}")
            yield Utterance(key, split, file, text, file, _speaker(key), bytes=tree[name], problem=problem)
        if not audio[key]:
            row = storage.join(uri, sidecars[key])
            problem = ("missing_file", "a text without audio of the same name beside it")
            yield Utterance(key, split, "", text, row, _speaker(key), problem=problem)
