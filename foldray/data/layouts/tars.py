"""WebDataset shards. Their audio is not read here, only located, so that a tar of any size costs its headers alone."""

import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BufferedReader

from foldray import storage
from foldray.data.layouts.fields import Problem, first_value, name_of, text_of
from foldray.data.layouts.source_folder import (
    SourceFolder,
    composed,
    file_name,
    find_shards,
    is_audio,
    is_unread_audio,
    stem,
)
from foldray.data.utterance import ContainerEntry, Utterance
from foldray.errors import UserError, one_line
from foldray.storage.text import MAX_TEXT_BYTES, NotTextError, decode_text, parse_object

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_TEXTS = ("txt", "json")


def find_webdataset(source: SourceFolder, name: str) -> list[str]:
    """`<name>.tar`, `<name>-*.tar` or all of `<name>/*.tar`; compressed ones too, which reading refuses."""
    return find_shards(source, name, (".tar", *_COMPRESSED))


@dataclass
class _Sample:
    """The members of one key: the audio files and their byte ranges, those of formats that are not decoded, the texts
    by name and ending, the endings of all others, and the problem if there is one."""

    row: str
    audio: list[tuple[str, ContainerEntry]] = field(default_factory=list)
    unread: list[tuple[str, ContainerEntry]] = field(default_factory=list)
    texts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    problem: tuple[str, str] | None = None


def read_webdataset(uri: str, split: str, _source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of one tar: adjacent members of one key, the path up to the first dot of the file name.

    Where a key has several audio files and a text with the whole name of one of them, names are the keys instead.

    The text is in a .txt, or in a .json with speaker, language and duration. Of a damaged tar, the members before the
    damage are kept, and one utterance named after the tar has the problem unreadable. Keys whose members are apart
    (interleaved), outside the tar (unsafe_path) or not files (not_a_file: links, devices, sparse files) have these
    problems; none of their members is read or followed.

    Raises:
        UserError: The tar is compressed.
    """
    if uri.partition("?")[0].endswith(_COMPRESSED):
        raise UserError(uri, "is compressed, so single utterances cannot be read from it; unpack it to a plain .tar")
    samples: dict[str, _Sample] = {}
    damage = None
    try:
        _collect(uri, samples)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        damage = one_line(error)
    for key, sample in samples.items():
        for own, part in _by_names(key, sample):
            yield from _utterances(own, part, uri, split)
    if damage:
        yield Utterance(file_name(uri), split, uri, None, uri, problem=("unreadable", f"a damaged tar: {damage}"))


class _Member(tarfile.TarInfo):
    """A member whose name and attributes tarfile reads into memory only up to a size."""

    def _proc_member(self, tar: tarfile.TarFile) -> "tarfile.TarInfo":
        if self.type in _HEADERS and self.size > MAX_TEXT_BYTES:
            raise tarfile.ReadError(f"a member header of {self.size:,} bytes, over {MAX_TEXT_BYTES:,}")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member


_HEADERS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
"""Types of the members that only describe the next one."""


def _collect(uri: str, samples: dict[str, _Sample]) -> None:
    last = None
    with storage.open_file(uri) as file:
        size = file.seek(0, 2)
        file.seek(0)
        # A name that is not UTF-8 must still give an id that can be written.
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace", tarinfo=_Member) as tar:
            for member in _members(tar, file, size):
                key, ending = _key_and_ending(composed(member.name))
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


def _members(tar: tarfile.TarFile, file: BufferedReader, size: int) -> Iterator[tarfile.TarInfo]:
    """The complete members. Raises ReadError if the tar is cut off or damaged."""
    while (member := tar.next()) is not None:
        if member.size < 0 or (member.isreg() and not member.issparse() and member.offset_data + member.size > size):
            raise tarfile.ReadError(f"it ends within {member.name}")
        yield member
        tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every member in memory
    # tarfile takes a damaged header for the end, which is a block of zeros.
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError("it is cut off" if len(block) < tarfile.BLOCKSIZE else "an invalid member header")


def _key_and_ending(path: str) -> tuple[str, str]:
    """The key a member belongs to, and its ending in lower case; key "" for hidden files and files without ending."""
    folder, slash, name = path.removeprefix("./").rpartition("/")
    own, _, ending = name.partition(".")
    return (folder + slash + own if own and ending else ""), ending.rpartition(".")[2].lower()


def _member_problem(member: tarfile.TarInfo, ending: str) -> tuple[str, str] | None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "unsafe_path", f"'{member.name}' points outside the tar"
    if not member.isreg() or member.issparse():
        return "not_a_file", f"'{member.name}' is a link, device or sparse file"
    if ending in _TEXTS and member.size > MAX_TEXT_BYTES:
        return "bad_metadata", f"'{member.name}' has {member.size} bytes, too many for a text file"
    return None


def _add(sample: _Sample, member: tarfile.TarInfo, ending: str, tar: tarfile.TarFile) -> None:
    if is_audio(f".{ending}"):
        sample.audio.append((member.name, ContainerEntry("bytes", member.offset_data, member.size)))
    elif is_unread_audio(f".{ending}"):
        sample.unread.append((member.name, ContainerEntry("bytes", member.offset_data, member.size)))
    elif ending in _TEXTS:
        opened = tar.extractfile(member)
        data = opened.read() if opened else b""
        if sample.texts.setdefault((_stem(member.name), ending), data) != data:
            sample.problem = (
                "bad_metadata", f"'{member.name}' is in the tar twice, with different texts; keep one of them"
            )  # fmt: skip
    else:
        sample.others.append(ending)


def _stem(name: str) -> str:
    """The path of a member without its last ending."""
    return composed(stem(name)).removeprefix("./")


def _by_names(key: str, sample: _Sample) -> Iterator[tuple[str, _Sample]]:
    """The samples of one key: one, or where names have dots (`2.0.mp3`, `2.1.mp3`, `2.1.txt`) one for each name."""
    audio = {_stem(name): (name, entry) for name, entry in (*sample.unread, *sample.audio)}
    texts = {name for name, _ in sample.texts}
    if sample.problem or len(audio) < 2 or not texts & audio.keys():
        yield key, sample
        return
    for own in (*audio, *sorted(texts - audio.keys())):
        yield (
            own,
            replace(
                sample,
                row=sample.row if own not in audio else f"{sample.row.rpartition(':')[0]}:{audio[own][0]}",
                audio=[each for each in sample.audio if _stem(each[0]) == own],
                unread=[each for each in sample.unread if _stem(each[0]) == own],
                texts={name: text for name, text in sample.texts.items() if name[0] == own},
            ),
        )


def _texts_of(sample: _Sample) -> dict[str, bytes]:
    """The text of each ending: that with the name of the audio, or else the first."""
    audio = {_stem(name) for name, _ in sample.audio or sample.unread}
    named = sorted(sample.texts.items(), key=lambda text: text[0][0] not in audio)
    return {ending: text for (_, ending), text in reversed(named)}


def _utterances(key: str, sample: _Sample, uri: str, split: str) -> Iterator[Utterance]:
    if sample.problem:
        yield Utterance(key, split, uri, None, sample.row, problem=sample.problem)
        return
    try:
        fields = _parse_texts(_texts_of(sample))
    except ValueError as error:
        reason = "not_utf8" if isinstance(error, NotTextError) else "bad_metadata"
        yield Utterance(key, split, uri, None, sample.row, problem=(reason, one_line(error)))
        return
    audio = sample.audio or sample.unread
    if not audio:
        others = f"only members that end in {', '.join(sample.others[:5])}: none is an ending of audio"
        problem = ("missing_file", "a text without audio" if sample.texts else others)
        yield Utterance(key, split, uri, None, sample.row, problem=problem)
    first = audio[0][0] if audio else ""
    for number, (name, entry) in enumerate(audio):
        yield Utterance(
            id=key,
            split=split,
            audio=uri,
            text=fields.text,
            row=f"{uri}:{name}",
            speaker=fields.speaker,
            language=fields.language,
            duration=fields.duration,
            entry=entry,
            bytes=entry.second,
            problem=fields.problem if number == 0 else ("duplicate_id", f"{first} has the same key"),
        )


@dataclass(frozen=True)
class _Fields:
    text: str | None
    problem: Problem | None
    speaker: str
    language: str
    duration: float | None


def _parse_texts(texts: dict[str, bytes]) -> _Fields:
    """Text, speaker, language and duration of one sample. Raises ValueError for what is no JSON or no text."""
    values = parse_object(decode_text(texts["json"])) if "json" in texts else {}
    duration = values.get("duration")
    if duration is not None and not (isinstance(duration, int | float) and 0 < duration <= sys.float_info.max):
        raise ValueError(f"duration {duration!r:.60} is not a number of seconds")
    text, problem = text_of(first_value(values, "text"))
    if "txt" in texts:
        text, problem = decode_text(texts["txt"]).strip(), None
    return _Fields(text, problem, name_of(values, "speaker"), name_of(values, "language"), duration)
