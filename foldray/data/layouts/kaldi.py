"""Kaldi data folders: wav.scp, text and their companions. Commands in them are refused, never run."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from foldray import storage
from foldray.data.layouts.place import Place, read_lines
from foldray.data.utterance import Utterance
from foldray.errors import UserError

_BLANKS = re.compile(r"[ \t]+")
_IN_AN_ARCHIVE = re.compile(r":\d+(\[.*\])?$")


def find_kaldi(place: Place, name: str) -> list[str]:
    """`<name>/` or `data/<name>/` with a wav.scp."""
    return next(([place.uri(sub)] for sub in (name, f"data/{name}") if "wav.scp" in place.files(sub)), [])


@dataclass(frozen=True)
class _Line:
    key: str
    value: str
    row: str


def read_kaldi(uri: str, split: str, place: Place) -> Iterator[Utterance]:
    """Utterances of one data folder: of `segments` where there is one, else one a line of `wav.scp`.

    Optional: `utt2spk`, `utt2lang`, `utt2dur`, `reco2dur`. Relative audio paths start at the folder.
    An utterance without a line in `text` has no text; a text without audio is a missing file.
    Raises UserError for wav.scp lines that are no plain paths.
    """
    there = set(storage.list_files(uri))
    listing = "segments" if "segments" in there else "wav.scp"
    wavs = [_plain_path(line) for line in _lines(uri, "wav.scp")]
    said = {name: _table(uri, name, there) for name in ("text", "utt2spk", "utt2lang", "utt2dur", "reco2dur")}
    durations = {} if listing == "segments" else said["utt2dur"] or said["reco2dur"]
    seen = set()
    for utterance in (_segments if listing == "segments" else _whole_files)(uri, split, wavs, place):
        seen.add(utterance.id)
        yield _described(utterance, said, durations.get(utterance.id))
    for line in said["text"].values():
        if line.key not in seen:
            problem = ("missing_file", f"'{line.key}' has a text but is not in {listing}")
            yield _described(Utterance(line.key, split, "", None, line.row, problem=problem), said, None)


def _lines(uri: str, name: str) -> Iterator[_Line]:
    file = storage.join(uri, name)
    for number, line in read_lines(file):
        key, _, value = _BLANKS.sub(" ", line.strip(), count=1).partition(" ")
        yield _Line(key, value.strip(), f"{file}:{number}")


def _table(uri: str, name: str, there: set[str]) -> dict[str, _Line]:
    """A file's lines by their keys; empty without the file. Raises UserError where a key comes twice."""
    table: dict[str, _Line] = {}
    for line in _lines(uri, name) if name in there else ():
        if line.key in table:
            raise UserError(line.row, f"'{line.key}' came before, at {table[line.key].row}; keep one of them")
        table[line.key] = line
    return table


def _plain_path(line: _Line) -> _Line:
    if line.value.endswith("|") or line.value.startswith("|"):
        raise UserError(
            line.row, "is a shell command, which is never executed; write its output to audio files and list those"
        )
    if _IN_AN_ARCHIVE.search(line.value):
        raise UserError(
            line.row, "is a place in a Kaldi archive, which is not read; write audio files out of it and list those"
        )
    if line.value in ("", "-"):
        raise UserError(line.row, "names no audio file; write '<recording> <path>'")
    return line


def _whole_files(uri: str, split: str, wavs: list[_Line], place: Place) -> Iterator[Utterance]:
    for wav in wavs:
        yield Utterance(wav.key, split, place.audio(wav.value, uri), None, wav.row)


def _segments(uri: str, split: str, wavs: list[_Line], place: Place) -> Iterator[Utterance]:
    recordings: dict[str, _Line] = {}
    for wav in wavs:
        if wav.key in recordings:
            raise UserError(wav.row, f"'{wav.key}' came before, at {recordings[wav.key].row}; keep one of them")
        recordings[wav.key] = wav
    for line in _lines(uri, "segments"):
        yield _segment(line, split, recordings, uri, place)


def _segment(line: _Line, split: str, recordings: dict[str, _Line], uri: str, place: Place) -> Utterance:
    recording, *numbers = _BLANKS.split(line.value)
    wav = recordings.get(recording)
    if wav is None:
        problem = ("missing_file", f"recording '{recording}' is not in wav.scp")
        return Utterance(line.key, split, "", None, line.row, problem=problem)
    audio = place.audio(wav.value, uri)
    timing = _timing(numbers)
    if timing is None:
        problem = ("bad_segment", f"'{' '.join(numbers)}' is no start and later end in seconds")
        return Utterance(line.key, split, audio, None, line.row, problem=problem)
    start, end, channel = timing
    return Utterance(
        line.key, split, audio, None, line.row, duration=round(end - start, 6), start=start, channel=channel
    )


def _timing(numbers: list[str]) -> tuple[float, float, int | None] | None:
    """Start, end and channel of a segment; None for what is none. -1, 'to the end', is none: it has no length."""
    try:
        start, end = float(numbers[0]), float(numbers[1])
        channel = {"A": 0, "B": 1}.get(numbers[2], -1) if len(numbers) > 2 else None
        channel = int(numbers[2]) if channel == -1 else channel
    except (ValueError, IndexError):
        return None
    whole = len(numbers) <= 3 and (channel is None or channel >= 0)
    return (start, end, channel) if whole and math.isfinite(end) and 0 <= start < end else None


def _described(utterance: Utterance, said: dict[str, dict[str, _Line]], duration: _Line | None) -> Utterance:
    """The utterance with what the folder's other files say of it."""

    def value(name: str) -> str | None:
        line = said[name].get(utterance.id)
        return line.value if line else None

    return replace(
        utterance,
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
