"""What `transcribe` is given: files, folders, globs, prefixes of buckets, manifests."""

import fnmatch
import functools
import glob
from collections.abc import Iterator, Mapping, Sequence

from foldray import storage
from foldray.data.audio_places import AudioPlaces
from foldray.data.layouts.manifests import read_jsonl
from foldray.data.layouts.source_folder import SourceFolder, is_audio, is_unread_audio, parent, visible_tree
from foldray.data.recording import Samples, read_recording
from foldray.data.samples import BadAudioError
from foldray.data.source_audio import read_audio
from foldray.data.speech import without_text
from foldray.data.utterance import Utterance
from foldray.errors import UserError, one_line
from foldray.transcription.files import Recording

MANIFESTS = (".jsonl", ".json")
MAX_SEGMENT = 6 * 3600.0


def find_recordings(given: Sequence[str], language: str = "") -> Iterator[Recording]:
    """Yield the recordings that arguments name, as `find_inputs`; rows of manifests are called by their ids.

    Args:
        given: Paths, URIs and patterns.
        language: Language code of those that have none of their own.

    Raises:
        UserError: A folder or pattern has no audio, or a manifest can't be read.
    """
    for each in find_inputs(given):
        name = each.row if each.problem else each.id
        yield Recording(name, functools.partial(read_input, each), each.language or language)


def find_inputs(given: Sequence[str]) -> Iterator[Utterance]:
    """Yield what arguments name, each with its URI as its id.

    A file is itself, whatever its ending; a folder or prefix all audio and film below it, sorted; a pattern such as
    `calls/*.wav` or `s3://bucket/calls/*.wav` what it matches; a `.jsonl` or `.json` manifest its rows, which have
    ids of their own. A row that can't be used has a problem.

    Raises:
        UserError: A folder or pattern has no audio, or a manifest can't be read.
    """
    for each in given:
        if each.lower().split("?")[0].endswith(MANIFESTS):
            yield from _of_manifest(each)
        elif "://" not in each and storage.is_folder(each):
            yield from _of_files(_below(each), each)
        elif _is_pattern(each) and not ("://" not in each and storage.exists(each)):
            yield from _of_files(dict.fromkeys(_matching(each)), each)
        elif "://" in each and not storage.exists(each) and storage.is_folder(each):
            yield from _of_files(_below(each), each)
        else:
            yield Utterance(each, "", each, None, each)


def _of_files(files: Mapping[str, int | None], given: str) -> Iterator[Utterance]:
    if not files:
        raise UserError(given, "has no audio files; name files, a folder, a pattern or a .jsonl manifest")
    for file, size in files.items():
        yield Utterance(file, "", file, None, file, bytes=size)


def _below(folder: str) -> dict[str, int | None]:
    """Bytes of every recording below a folder, by URI."""
    tree = sorted(visible_tree(folder).items())
    return {storage.join(folder, name): size for name, size in tree if _is_recording(name)}


def _is_recording(name: str) -> bool:
    return is_audio(name) or is_unread_audio(name)


def _is_pattern(given: str) -> bool:
    # "?" begins the options of a URI, and "[" is part of many file names; a file of that name goes first.
    return "*" in given or ("://" not in given and glob.has_magic(given))


def _matching(pattern: str) -> list[str]:
    """The files that a pattern matches; `*` stays within a folder's name, `**` does not."""
    if "://" not in pattern:
        return sorted(file for file in glob.glob(pattern, recursive=True) if storage.exists(file))
    path, mark, options = pattern.partition("?")
    root = path[: path.index("*")].rpartition("/")[0]
    rest = path[len(root) + 1 :]
    names = storage.list_tree(root + mark + options)
    return [storage.join(root + mark + options, name) for name in sorted(names) if _fits(name, rest)]


def _fits(name: str, pattern: str) -> bool:
    return _fit(name.split("/"), pattern.split("/"))


def _fit(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether folders and file match their patterns; `**` stands for any number of folders, as for `glob`."""
    if not wanted or not parts:
        return not wanted and not parts
    hidden = parts[0].startswith(".") and not wanted[0].startswith(".")  # as the ._a.wav that macOS leaves beside a.wav
    if wanted[0] == "**" and wanted[1:]:
        return _fit(parts, wanted[1:]) or (not hidden and _fit(parts[1:], wanted))
    return not hidden and fnmatch.fnmatchcase(parts[0], wanted[0]) and _fit(parts[1:], wanted[1:])


def _of_manifest(uri: str) -> Iterator[Utterance]:
    """The rows of a manifest."""
    if not storage.exists(uri):
        raise UserError(uri, "does not exist")
    folder = parent(storage.absolute(uri))
    places = AudioPlaces((folder,), ())
    empty = True
    for row in read_jsonl(storage.absolute(uri), "", SourceFolder(folder)):
        empty = False
        yield places.checked(without_text(row))
    if empty:
        raise UserError(uri, "has no rows; write a JSON object with an audio field on each line")


def read_input(row: Utterance) -> Iterator[Samples]:
    """Yield the mono 16 kHz samples of an utterance, (T,): of a segment at once, of a whole file as a stream.

    Raises:
        UserError: It can't be used; names the recording or row.
    """
    if row.problem:
        raise UserError(row.row, f"can't be used ({row.problem[0]}: {row.problem[1]})")
    try:
        if row.start is None and row.channel is None and row.entry is None:
            yield from read_recording(row.audio)
            return
        yield read_audio(row, MAX_SEGMENT)
    except BadAudioError as bad:
        raise UserError(row.row, f"can't be used ({bad.reason}: {bad.detail})") from None
    except FileNotFoundError:
        raise UserError(row.row, f"{row.audio} does not exist") from None
    except (OSError, ValueError) as error:  # a store's refusal or outage is a UserError by now
        raise UserError(row.row, f"can't be used (unreadable: {one_line(error)})") from None
