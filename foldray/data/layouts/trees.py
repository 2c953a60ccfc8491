"""Layouts defined by folders and file names: LibriSpeech's, and audio files with a text file next to each."""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterator

from foldray import storage
from foldray.data.layouts.fields import Problem
from foldray.data.layouts.source_folder import (
    SourceFolder,
    audio_files,
    composed,
    is_audio,
    is_unread_audio,
    stem,
    visible_tree,
)
from foldray.data.utterance import Utterance
from foldray.storage.text import MAX_TEXT_BYTES, NotTextError, decode_text, read_files, split_lines

_TRANSCRIPTS = ".trans.txt"
_SIDECARS = (".txt", ".lab")
_LIBRISPEECH = "LibriSpeech"
_AUDIOFOLDER_TABLES = ("metadata.csv", "metadata.parquet")


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
    return _first_holds(uri, 3, lambda name: is_audio(name) or is_unread_audio(name))


def _first_holds(uri: str, deeper: int, matches: Callable[[str], bool]) -> bool:
    if any(map(matches, storage.list_files(uri))):
        return True
    folders = [name for name in storage.list_folders(uri) if not name.startswith(".")] if deeper else []
    return bool(folders) and _first_holds(storage.join(uri, folders[0]), deeper - 1, matches)


def read_librispeech(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of `SPEAKER/CHAPTER/*.flac`, with texts from `SPEAKER-CHAPTER.trans.txt`."""
    tree = visible_tree(uri)
    transcripts = [name for name in tree if name.endswith(_TRANSCRIPTS)]
    for name in transcripts:
        source.text_file(storage.join(uri, name))
    texts = _transcripts(uri, transcripts)
    audio = audio_files(tree, frozenset(texts))
    # LibriSpeech's names contain speaker and chapter; where they begin anew in each chapter, ids are paths.
    is_unique = len({posixpath.basename(stem(name)) for name in audio}) == len({stem(name) for name in audio})
    id_of = posixpath.basename if is_unique else str
    for name in audio:
        file = storage.join(uri, name)
        text, row, problem = texts.pop(composed(stem(name)), (None, file, None))
        yield Utterance(id_of(stem(name)), split, file, text, row, _speaker(name), bytes=tree[name], problem=problem)
    for key, (text, row, _) in texts.items():
        problem = ("missing_file", "a transcript without an audio file next to it")
        yield Utterance(id_of(key), split, "", text, row, _speaker(key), problem=problem)


_Transcript = tuple[str | None, str, Problem | None]
"""A text, the `file:line` it is from, and what is wrong with it."""


def _transcripts(uri: str, files: list[str]) -> dict[str, _Transcript]:
    """The transcript of each utterance by its path without ending."""
    texts: dict[str, _Transcript] = {}
    for name, content in zip(files, read_files(storage.join(uri, name) for name in files), strict=True):
        file = storage.join(uri, name)
        for line in split_lines(content, file):
            key, _, text = line.text.strip().partition(" ")
            problem = ("not_utf8", line.problem) if line.problem else None
            texts[composed(posixpath.join(posixpath.dirname(name), key))] = text, f"{file}:{line.number}", problem
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


def read_folder(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of the audio files at any depth; the text is in a .txt or else .lab file of the same stem.

    Ids are paths without endings, speakers the names of the first folders. Audio without a text file has no text, a
    text file without audio is a missing file, and of two audio files of one stem the second is a duplicate.
    """
    tree = visible_tree(uri)
    sidecars = {
        composed(stem(name)): name for ending in reversed(_SIDECARS) for name in tree if name.lower().endswith(ending)
    }
    without = ("no_text", f"no {' or '.join(_SIDECARS)} file of the same name next to it{_metadata_hint(tree)}")
    unread = {key: _unread(storage.join(uri, name), tree[name], source) for key, name in sidecars.items()}
    read = {key: name for key, name in sidecars.items() if not unread[key]}
    contents = read_files(storage.join(uri, name) for name in read.values())
    texts = {key: _sidecar_text(data, read[key]) for key, data in zip(read, contents, strict=True)}
    audio: dict[str, list[str]] = defaultdict(list)
    for name in audio_files(tree, sidecars):
        audio[composed(stem(name))].append(name)
    for key in sorted(audio.keys() | sidecars.keys()):
        text, bad_text = texts.get(key, (None, unread.get(key) or without))
        for name in audio[key]:
            file = storage.join(uri, name)
            problem = bad_text if name == audio[key][0] else ("duplicate_id", f"{audio[key][0]} has the same stem")
            yield Utterance(key, split, file, text, file, _speaker(key), bytes=tree[name], problem=problem)
        if not audio[key]:
            row = storage.join(uri, sidecars[key])
            problem = ("missing_file", "a text file without an audio file of the same name next to it")
            yield Utterance(key, split, "", text, row, _speaker(key), problem=problem)


def _metadata_hint(tree: dict[str, int]) -> str:
    """Where the texts are instead, for audiofolder's other table; its metadata.jsonl has a layout."""
    found = next((name for name in tree if posixpath.basename(name) in _AUDIOFOLDER_TABLES), None)
    return f"; write {found} as metadata.jsonl in the folder of its split" if found else ""


def _unread(uri: str, size: int, source: SourceFolder) -> Problem | None:
    """Why the text file beside audio is not read."""
    if size > MAX_TEXT_BYTES:
        return "bad_metadata", f"{storage.relative(uri, source.root)} has {size:,} bytes, over {MAX_TEXT_BYTES:,}"
    return source.text_problem(uri)


def _sidecar_text(data: bytes, name: str) -> tuple[str | None, Problem | None]:
    """The text of a file beside audio, or None and what is wrong with it."""
    try:
        return decode_text(data).strip(), None
    except NotTextError as error:
        return None, ("not_utf8", f"{name}: {error}")
