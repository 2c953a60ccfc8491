"""Layouts defined by folders and file names: LibriSpeech's, and audio files with a text file next to each."""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator

from foldray import storage
from foldray.data.layouts.source_folder import SourceFolder, is_audio, stem, visible_tree
from foldray.data.utterance import Utterance
from foldray.storage.text import read_texts

_TRANSCRIPTS = ".trans.txt"
_SIDECARS = (".txt", ".lab")
_LIBRISPEECH = "LibriSpeech"


def find_librispeech(source: SourceFolder, name: str) -> list[str]:
    """The sub-folder `name`; for train every `train*`, for dev and test `<name>-clean` or else every `<name>*`.

    The corpus folder may also be the one that contains `LibriSpeech/`, as its archives unpack.
    """
    home = _LIBRISPEECH if _LIBRISPEECH in source.folders() else ""
    above = "/".join(filter(None, (home, posixpath.dirname(name))))
    own, folders = posixpath.basename(name), source.folders(above)
    for exact in (own, f"{own}-clean" if own in ("dev", "test") else own):
        if exact in folders:
            return [source.uri(above, exact)]
    return [source.uri(above, f) for f in folders if f.startswith(own)] if own in ("train", "dev", "test") else []


def holds_transcripts(uri: str) -> bool:
    """Whether a chapter of the folder's first speaker has transcripts in LibriSpeech's format."""
    return _first_holds(uri, 2, lambda name: name.endswith(_TRANSCRIPTS))


def holds_audio(uri: str) -> bool:
    """Whether there are audio files in the folder or in the first of its sub-folders, three levels deep."""
    return _first_holds(uri, 3, is_audio)


def _first_holds(uri: str, deeper: int, matches: Callable[[str], bool]) -> bool:
    if any(map(matches, storage.list_files(uri))):
        return True
    folders = [name for name in storage.list_folders(uri) if not name.startswith(".")] if deeper else []
    return bool(folders) and _first_holds(storage.join(uri, folders[0]), deeper - 1, matches)


def read_librispeech(uri: str, split: str, _source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of `SPEAKER/CHAPTER/*.flac`, with texts from `SPEAKER-CHAPTER.trans.txt`."""
    tree = visible_tree(uri)
    texts = _transcripts(uri, [name for name in tree if name.endswith(_TRANSCRIPTS)])
    for name in filter(is_audio, tree):
        file = storage.join(uri, name)
        text, row = texts.pop(stem(name), (None, file))
        yield Utterance(posixpath.basename(stem(name)), split, file, text, row, _speaker(name), bytes=tree[name])
    for key, (text, row) in texts.items():
        problem = ("missing_file", "a transcript without an audio file next to it")
        yield Utterance(posixpath.basename(key), split, "", text, row, _speaker(key), problem=problem)


def _transcripts(uri: str, files: list[str]) -> dict[str, tuple[str | None, str]]:
    """Text and `file:line` of each utterance by its path without ending."""
    texts: dict[str, tuple[str | None, str]] = {}
    for name, content in zip(files, read_texts(storage.join(uri, name) for name in files), strict=True):
        for number, line in enumerate(content.split("\n"), start=1):
            key, _, text = line.strip().partition(" ")
            if key:
                texts[posixpath.join(posixpath.dirname(name), key)] = text, f"{storage.join(uri, name)}:{number}"
    return texts


def _speaker(path: str) -> str:
    """The name of the first folder."""
    return path.partition("/")[0] if "/" in path else ""


# --- Audio with text files --------------------------------------------------------------------------


def find_folder(source: SourceFolder, name: str) -> list[str]:
    """The sub-folder `name`, or the folder itself for `.`."""
    if name == ".":
        return [source.root]
    above, _, own = name.rpartition("/")
    return [source.uri(name)] if own in source.folders(above) else []


def read_folder(uri: str, split: str, _source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of the audio files at any depth; the text is in a .txt or else .lab file of the same stem.

    Ids are paths without endings, speakers the names of the first folders. Audio without a text file has no text, a
    text file without audio is a missing file, and of two audio files of one stem the second is a duplicate.
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
            problem = None if name == audio[key][0] else ("duplicate_id", f"{audio[key][0]} has the same stem")
            yield Utterance(key, split, file, text, file, _speaker(key), bytes=tree[name], problem=problem)
        if not audio[key]:
            row = storage.join(uri, sidecars[key])
            problem = ("missing_file", "a text file without an audio file of the same name next to it")
            yield Utterance(key, split, "", text, row, _speaker(key), problem=problem)
