"""Transcripts as text, JSON lines, subtitles (SRT, WebVTT) and NIST's CTM."""

import json
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from foldray import storage
from foldray.data.layouts.source_folder import is_audio, is_unread_audio
from foldray.errors import UserError
from foldray.runtime.terminal import HIDDEN
from foldray.transcription.transcript import Transcript, Word, join_words

Format = Literal["text", "jsonl", "srt", "vtt", "ctm"]
FORMATS: tuple[Format, ...] = get_args(Format)
TIMED: tuple[Format, ...] = ("jsonl", "srt", "vtt", "ctm")
"""The formats that hold times of words."""

LINE_CHARACTERS, CUE_LINES, CUE_SECONDS, CUE_PAUSE, CUE_LEAST = 42, 2, 6.0, 0.8, 0.1
"""A cue of subtitles has at most two lines of 42 characters and 6 s (usual guidelines of broadcasters), and ends in a
pause of 0.8 s. It lasts 0.1 s at least: attention may give a word no time."""


def parse_format(name: str) -> Format:
    """Return the format that `--format` names. Raises UserError for an unknown one."""
    for known in FORMATS:
        if known == name:
            return known
    raise UserError("--format", f"must be one of {', '.join(FORMATS)}, parquet (got '{name}')")


def written(name: str, found: Transcript, kind: Format) -> str:
    """A transcript in a format, each line with its end.

    Args:
        name: The recording's name.
        found: The transcript, with words for all formats but text.
        kind: The format.

    Example:
        >>> print(written("a.wav", transcript, "ctm"), end="")
        a.wav 1 0.120 0.310 hello 0.982
    """
    if kind == "text":
        return f"{found.text}\n"
    if kind == "jsonl":
        return _json_line(as_json(name, found))
    if kind == "ctm":
        return "".join(_ctm_line(name, word) for word in found.words)
    return _subtitles(found.words, kind)


def _json_line(values: dict[str, object]) -> str:
    """One line of JSON, in which what a terminal or an encoding would change is escaped."""
    line = json.dumps(values, ensure_ascii=False)
    return HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], line) + "\n"


NAME_BYTES = 255
"""Longest name of a file on most file systems; titles of films are often cut to just this length."""
ENDINGS: dict[Format, str] = {"text": "txt", "jsonl": "jsonl", "srt": "srt", "vtt": "vtt", "ctm": "ctm"}


def output_files(names: Sequence[str], kind: Format) -> dict[str, str]:
    """The path of the output file of each recording, below the folder of all outputs.

    Paths keep what differs between the recordings' folders. The ending of audio is replaced.

    Raises:
        UserError: Two recordings would have one file, or a name is not one of a file.

    Example:
        >>> output_files(["s3://b/x/1.wav", "s3://b/y/1.wav"], "srt")
        {'s3://b/x/1.wav': 'x/1.srt', 's3://b/y/1.wav': 'y/1.srt'}
    """
    parts = {name: [part for part in _path_of(name).split("/") if part not in ("", ".", "..")] for name in names}
    shared = _shared_start([own[:-1] for own in parts.values()])
    files: dict[str, str] = {}
    for name, own in parts.items():
        *folders, last = own[shared:] or [""]
        stem = posixpath.splitext(last)[0] if is_audio(last) or is_unread_audio(last) else last
        inside = [*folders, f"{stem}.{ENDINGS[kind]}"]
        if not stem or not all(storage.is_plain(part) and len(os.fsencode(part)) <= NAME_BYTES for part in inside):
            raise UserError(
                "--out", f"the recording {name!r} can't be the name of a file; leave --out out, or rename it"
            )
        files[name] = "/".join(inside)
    if len(set(files.values())) < len(names):
        twice = Counter(files[name] for name in names).most_common(1)[0][0]
        raise UserError("--out", f"two recordings would be written to {twice}; transcribe them by themselves")
    return files


def _shared_start(paths: Sequence[list[str]]) -> int:
    """How many folders all paths begin with."""
    return next((i for i, level in enumerate(zip(*paths, strict=False)) if len(set(level)) > 1), min(map(len, paths)))


def _path_of(name: str) -> str:
    return storage.filesystem_path(name) if "://" in name else name


def as_json(name: str, found: Transcript) -> dict[str, object]:
    """A transcript as an object: file, text, seconds, depth, confidence, words, notes. Times are rounded to 1 ms."""
    words = [
        {"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "confidence": round(w.confidence, 4)}
        for w in found.words
    ]
    values: dict[str, object] = {
        "file": name,
        "text": found.text,
        "seconds": round(found.seconds, 3),
        "depth": found.depth,
        "confidence": rounded(found.confidence),
        "words": words,
    }
    return values | ({"notes": list(found.notes)} if found.notes else {})


def rounded(confidence: float | None) -> float | None:
    """A confidence with four digits, if there is one."""
    return None if confidence is None else round(confidence, 4)


def _ctm_line(name: str, word: Word) -> str:
    # Fields are separated by spaces: none may be inside of one (sctk, doc/infmts.htm).
    recording, text = (re.sub(r"\s+", "_", part) for part in (name, word.text))
    return f"{recording} 1 {word.start:.3f} {word.end - word.start:.3f} {text} {word.confidence:.3f}\n"


def _subtitles(words: Sequence[Word], kind: Format) -> str:
    cues = []
    groups = list(cut_cues(words))
    following = [*(cue[0].start for cue in groups[1:]), math.inf]
    for number, cue in enumerate(groups, start=1):
        last = _cue_end(cue, following[number - 1])
        start, end = (clock(second, "," if kind == "srt" else ".") for second in (cue[0].start, last))
        text = "\n".join(_lines(cue))
        if kind == "vtt":
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append((f"{number}\n" if kind == "srt" else "") + f"{start} --> {end}\n{text}\n")
    return ("WEBVTT\n\n" if kind == "vtt" else "") + "\n".join(cues)


def _cue_end(cue: Sequence[Word], following: float) -> float:
    """When a cue ends: after its words, before the next one, and never where it begins: players skip such a cue."""
    start = cue[0].start
    last = min(cue[-1].end, start + CUE_SECONDS)  # a decoder's word lasts until the next one
    last = max(last, start + CUE_LEAST)
    return min(last, following) if following > start else last


def clock(seconds: float, mark: str) -> str:
    """Seconds as hours, minutes, seconds and milliseconds.

    Example:
        >>> clock(3661.5, ",")
        '01:01:01,500'
    """
    milliseconds = round(max(0.0, seconds) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def cut_cues(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Group words into cues of subtitles; every word is in one, in order."""
    cue: list[Word] = []
    for word in words:
        if cue and (
            word.start - cue[-1].end > CUE_PAUSE
            or word.end - cue[0].start > CUE_SECONDS
            or len(_lines([*cue, word])) > CUE_LINES
        ):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _lines(cue: Sequence[Word]) -> list[str]:
    lines: list[str] = []
    for word in cue:
        longer = join_words([lines[-1], word.text]) if lines else word.text
        if lines and len(longer) <= LINE_CHARACTERS:
            lines[-1] = longer
        else:
            lines.append(word.text)
    return lines
