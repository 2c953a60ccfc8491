"""WebDataset shards: tars whose audio is never read here, only found, so that any tar costs its headers alone."""

import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from foldray import storage
from foldray.data.layouts.place import Place, file_name, find_shards, is_audio
from foldray.data.utterance import Utterance, Within
from foldray.errors import UserError, one_line

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MOST_TEXT = 2**20
_TEXTS = ("txt", "json")
_SAID = {
    "text": ("text", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id"),
    "language": ("lang", "language"),
}


def find_webdataset(place: Place, name: str) -> list[str]:
    """`<name>.tar`, `<name>-*.tar` or all of `<name>/*.tar`; compressed ones too, which reading refuses."""
    return find_shards(place, name, (".tar", *_COMPRESSED))


@dataclass
class _Sample:
    """The members of one key: the audio files and where they lie, the texts, and what is wrong."""

    row: str
    audio: list[tuple[str, Within]] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


def read_webdataset(uri: str, split: str, _place: Place) -> Iterator[Utterance]:
    """Utterances of one tar: adjacent members of one key, which is the path up to the first dot of the file name.

    The text is in a .txt, or in a .json with speaker, language and duration. Of a damaged tar, what
    came whole stays, and one utterance named after the tar has the problem unreadable. Keys with
    members apart (interleaved), outside (unsafe_path) or that are no files (not_a_file: links,
    devices, sparse files) have these problems, and nothing of them is read or followed.
    """
    if uri.partition("?")[0].endswith(_COMPRESSED):
        raise UserError(uri, "is compressed, so that no utterance in it can be read alone; unpack it to a plain .tar")
    samples: dict[str, _Sample] = {}
    damage = None
    try:
        _collect(uri, samples)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        damage = one_line(error)
    for key, sample in samples.items():
        yield from _utterances(key, sample, uri, split)
    if damage:
        yield Utterance(file_name(uri), split, uri, None, uri, problem=("unreadable", f"a damaged tar: {damage}"))


def _collect(uri: str, samples: dict[str, _Sample]) -> None:
    last = None
    with storage.open_file(uri) as file:
        size = file.seek(0, 2)
        file.seek(0)
        # A name that is no UTF-8 must still be an id that can be written.
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
            for member in _members(tar, file, size):
                key, ending = _key_and_ending(member.name)
                if not key or member.isdir():
                    continue
                again = key in samples
                sample = samples.setdefault(key, _Sample(f"{uri}:{member.name}"))
                if again and key != last:
                    sample.problem = sample.problem or ("interleaved", f"other keys lie between members of '{key}'")
                last = key
                sample.problem = sample.problem or _member_problem(member, ending)
                if not sample.problem:
                    _add(sample, member, ending, tar)


def _members(tar: tarfile.TarFile, file: Any, size: int) -> Iterator[tarfile.TarInfo]:
    """The members that are whole. Raises ReadError where the tar does not end as one does."""
    while (member := tar.next()) is not None:
        if member.size < 0 or (member.isreg() and not member.issparse() and member.offset_data + member.size > size):
            raise tarfile.ReadError(f"it ends within {member.name}")
        yield member
        tar.members = []  # type: ignore[attr-defined]  # else a tar of many members would hold them all
    # tarfile takes a damaged head for the end, which is a block of zeros.
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it ends within" if len(block) < tarfile.BLOCKSIZE else "no head of a member")


def _key_and_ending(path: str) -> tuple[str, str]:
    """The key a member belongs to, and its ending in lower case; no key for hidden files and those without ending."""
    folder, slash, name = path.removeprefix("./").rpartition("/")
    own, _, ending = name.partition(".")
    return (folder + slash + own if own and ending else ""), ending.rpartition(".")[2].lower()


def _member_problem(member: tarfile.TarInfo, ending: str) -> tuple[str, str] | None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "unsafe_path", f"'{member.name}' leads out of the tar"
    if not member.isreg() or member.issparse():
        return "not_a_file", f"'{member.name}' is a link, device or sparse file"
    if ending in _TEXTS and member.size > _MOST_TEXT:
        return "bad_metadata", f"'{member.name}' has {member.size} bytes, too many for a text"
    return None


def _add(sample: _Sample, member: tarfile.TarInfo, ending: str, tar: tarfile.TarFile) -> None:
    if is_audio(f".{ending}"):
        sample.audio.append((member.name, Within("bytes", member.offset_data, member.size)))
    elif ending in _TEXTS:
        opened = tar.extractfile(member)
        sample.texts.setdefault(ending, opened.read() if opened else b"")


def _utterances(key: str, sample: _Sample, uri: str, split: str) -> Iterator[Utterance]:
    if sample.problem:
        yield Utterance(key, split, uri, None, sample.row, problem=sample.problem)
        return
    try:
        said = _said(sample.texts)
    except ValueError as error:
        yield Utterance(key, split, uri, None, sample.row, problem=("bad_metadata", one_line(error)))
        return
    if sample.texts and not sample.audio:
        yield Utterance(key, split, uri, None, sample.row, problem=("missing_file", "a text without audio"))
    for name, within in sample.audio:
        first = sample.audio[0][0]
        problem = None if within is sample.audio[0][1] else ("duplicate_id", f"beside it is {first}")
        row = f"{uri}:{name}"
        yield Utterance(key, split, uri, row=row, within=within, bytes=within.second, problem=problem, **said)


def _said(texts: dict[str, bytes]) -> dict[str, Any]:
    """Text, speaker, language and duration of one sample. Raises ValueError for a .json that is not as it should be."""
    entry = json.loads(texts["json"]) if "json" in texts else {}
    if not isinstance(entry, dict):
        raise ValueError("the .json is not an object")
    said = {name: next((entry[k] for k in keys if entry.get(k) is not None), None) for name, keys in _SAID.items()}
    text = None if said["text"] is None else str(said["text"])
    duration = entry.get("duration")
    if duration is not None and not (isinstance(duration, int | float) and math.isfinite(duration) and duration > 0):
        raise ValueError(f"duration {duration!r} is not a number of seconds")
    return {
        "text": texts["txt"].decode("utf-8-sig", "replace").strip() if "txt" in texts else text,
        "speaker": "" if said["speaker"] is None else str(said["speaker"]),
        "language": "" if said["language"] is None else str(said["language"]),
        "duration": duration,
    }
