"""Kaldi data folders: wav.scp, text and the optional tables. Shell commands in them are refused, never run."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from foldray import storage
from foldray.data.layouts.source_folder import SourceFolder, composed
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage.text import read_lines

_BLANKS = re.compile(r"[ \t]+")
_ARCHIVE_OFFSET = re.compile(r":\d+(\[.*\])?$")
_FILE_END = -1.0
"""The end of a segment that reaches to the end of its file."""

_TABLES = ("text", "utt2spk", "utt2lang", "utt2dur", "reco2dur")


def find_kaldi(source: SourceFolder, name: str) -> list[str]:
    """`<name>/` or `data/<name>/` with a wav.scp."""
    return next(([source.uri(sub)] for sub in (name, f"data/{name}") if "wav.scp" in source.files(sub)), [])


@dataclass(frozen=True)
class _Line:
    """A line `key value` of a table, its `file:number` for messages, and what is wrong with its bytes."""

    key: str
    value: str
    row: str
    problem: str | None = None


_Table = dict[str, _Line]


def read_kaldi(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of one data folder: of `segments` if it has that file, else one a line of `wav.scp`.

    Optional: `utt2spk`, `utt2lang`, `utt2dur`, `reco2dur`. Relative audio paths start at the folder. An utterance
    without a line in `text` has no text; a text without audio is a missing file. A repeated line counts once.

    Raises:
        UserError: A line of wav.scp is not a plain path, a key has two values, or a line beside `text` is not UTF-8.
    """
    files = set(storage.list_files(uri))
    for name in files & {"wav.scp", "segments", *_TABLES}:
        source.text_file(storage.join(uri, name))
    listing = "segments" if "segments" in files else "wav.scp"
    wavs = [_plain_path(line) for line in _listing(uri, "wav.scp")]
    tables = {name: _table(uri, name) if name in files else {} for name in _TABLES}
    durations = {} if listing == "segments" else tables["utt2dur"] or tables["reco2dur"]
    seen = set()
    for utterance in (_segments if listing == "segments" else _whole_files)(uri, split, wavs, source):
        seen.add(utterance.id)
        yield _with_tables(utterance, tables, durations.get(utterance.id))
    for line in tables["text"].values():
        if line.key not in seen:
            problem = ("missing_file", f"'{line.key}' has a text but is not in {listing}")
            yield _with_tables(Utterance(line.key, split, "", None, line.row, problem=problem), tables, None)


def _lines(uri: str, name: str) -> Iterator[_Line]:
    file = storage.join(uri, name)
    for line in read_lines(file):
        key, _, value = _BLANKS.sub(" ", line.text.strip(), count=1).partition(" ")
        row = f"{file}:{line.number}"
        if line.problem and name != "text":
            raise UserError(row, line.problem)
        yield _Line(composed(key), value.strip(), row, line.problem)


def _listing(uri: str, name: str) -> Iterator[_Line]:
    """The lines of a listing, each once. Those of one key and different values are duplicates of an id."""
    seen = set()
    for line in _lines(uri, name):
        if (line.key, line.value) not in seen:
            seen.add((line.key, line.value))
            yield line


def _table(uri: str, name: str) -> _Table:
    """A file's lines by their keys. Raises UserError where a key has two values."""
    return _by_key(_lines(uri, name))


def _by_key(lines: Iterator[_Line] | list[_Line]) -> _Table:
    table: _Table = {}
    for line in lines:
        first = table.setdefault(line.key, line)
        if first.value != line.value:
            values = f"'{line.value[:60]}' here and '{first.value[:60]}' at {first.row}"
            raise UserError(line.row, f"'{line.key}' has {values}; keep one of them")
    return table


def _plain_path(line: _Line) -> _Line:
    if line.value.endswith("|") or line.value.startswith("|"):
        raise UserError(
            line.row, "is a shell command, which is never executed; write its output to audio files and list those"
        )
    if _ARCHIVE_OFFSET.search(line.value):
        raise UserError(
            line.row, "points into a Kaldi archive, which is not supported; write it out as audio files and list those"
        )
    if line.value in ("", "-"):
        raise UserError(line.row, "names no audio file; write '<recording> <path>'")
    return line


def _whole_files(uri: str, split: str, wavs: list[_Line], source: SourceFolder) -> Iterator[Utterance]:
    for wav in wavs:
        yield Utterance(wav.key, split, source.audio(wav.value, uri), None, wav.row)


def _segments(uri: str, split: str, wavs: list[_Line], source: SourceFolder) -> Iterator[Utterance]:
    recordings = _by_key(wavs)
    for line in _listing(uri, "segments"):
        yield _segment(line, split, recordings, uri, source)


def _segment(line: _Line, split: str, recordings: _Table, uri: str, source: SourceFolder) -> Utterance:
    recording, *numbers = _BLANKS.split(line.value)
    wav = recordings.get(recording)
    if wav is None:
        problem = ("missing_file", f"recording '{recording}' is not in wav.scp")
        return Utterance(line.key, split, "", None, line.row, problem=problem)
    audio = source.audio(wav.value, uri)
    timing = _timing(numbers)
    if timing is None:
        problem = ("bad_segment", f"'{' '.join(numbers)}' is not a start and a later end in seconds, or -1")
        return Utterance(line.key, split, audio, None, line.row, problem=problem)
    start, end, channel = timing
    duration = None if end == _FILE_END else round(end - start, 6)
    return Utterance(line.key, split, audio, None, line.row, duration=duration, start=start, channel=channel)


def _timing(numbers: list[str]) -> tuple[float, float, int | None] | None:
    """Start, end (-1: that of the file) and channel of a segment; None if invalid."""
    try:
        start, end = float(numbers[0]), float(numbers[1])
        channel = {"A": 0, "B": 1}.get(numbers[2], -1) if len(numbers) > 2 else None
        channel = int(numbers[2]) if channel == -1 else channel
    except (ValueError, IndexError):
        return None
    valid = len(numbers) <= 3 and (channel is None or channel >= 0)
    return (start, end, channel) if valid and _is_range(start, end) else None


def _is_range(start: float, end: float) -> bool:
    return math.isfinite(start) and math.isfinite(end) and (0 <= start < end or (start >= 0 and end == _FILE_END))


def _with_tables(utterance: Utterance, tables: dict[str, _Table], duration: _Line | None) -> Utterance:
    """The utterance with its text, speaker, language and duration from the folder's tables."""

    def value(name: str) -> str | None:
        line = tables[name].get(utterance.id)
        return line.value if line else None

    text = tables["text"].get(utterance.id)
    return replace(
        utterance,
        problem=utterance.problem or (("not_utf8", text.problem) if text and text.problem else None),
        text=value("text"),
        speaker=value("utt2spk") or "",
        language=value("utt2lang") or "",
        duration=utterance.duration if duration is None else _seconds(duration),
    )


def _seconds(line: _Line) -> float:
    try:
        seconds = float(line.value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise UserError(line.row, f"'{line.value}' is not a number of seconds")
    return seconds
