"""Layouts of one manifest a split: JSON lines, NeMo's among them, and Common Voice's tables."""

import json
import math
from collections.abc import Iterator
from typing import Any

from foldray import storage
from foldray.data.layouts.place import Place, file_name, parent, read_lines, stem
from foldray.data.utterance import Utterance
from foldray.errors import UserError

_NAMES = {
    "audio": ("audio", "audio_filepath", "path", "file"),
    "text": ("text", "transcript", "sentence"),
    "language": ("lang", "language"),
    "speaker": ("speaker", "speaker_id", "spk"),
}


def find_jsonl(place: Place, name: str) -> list[str]:
    """`<name>.jsonl` or as NeMo calls it, or all of `<name>/*.jsonl`."""
    above, _, own = name.rpartition("/")
    endings = ("", ".jsonl", ".json", "_manifest.jsonl", "_manifest.json")
    for file in (own + ending for ending in endings):
        if file.endswith((".jsonl", ".json")) and file in place.files(above):
            return [place.uri(above, file)]
    return [place.uri(name, file) for file in place.files(name) if file.endswith(".jsonl")]


def read_jsonl(uri: str, split: str, place: Place) -> Iterator[Utterance]:
    """Utterances of one manifest: one object a line with `audio` and `text`.

    Optional: `id`, `speaker`, `lang`, `duration` and `offset` (seconds; both together name a segment
    of a longer file). NeMo's `audio_filepath` is understood too. Relative audio paths start at the
    folder of the manifest, and are the ids of rows without one. A row that is none of this is an utterance
    with the problem bad_metadata.
    """
    base = parent(uri)
    for number, line in read_lines(uri):
        row = f"{uri}:{number}"
        try:
            yield _read_row(line, row, base, split, place)
        except ValueError as error:
            problem = ("bad_metadata", str(error))
            yield Utterance(f"{file_name(uri)}:{number}", split, "", None, row, problem=problem)


def _read_row(line: str, row: str, base: str, split: str, place: Place) -> Utterance:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(entry, dict):
        raise ValueError('is not an object; write {"audio": "…", "text": "…"}')
    audio = str(_field(entry, "audio") or "")
    if not audio:
        raise ValueError(f"has no audio file; give one of {', '.join(_NAMES['audio'])}")
    start, duration = (_seconds(entry, name) for name in ("offset", "duration"))
    if start is not None and duration is None:
        raise ValueError("has an offset but no duration; a segment needs both")
    segment = "" if start is None else f"@{start!r}+{duration!r}"
    return Utterance(
        id=str(entry.get("id") or stem(audio) + segment),
        split=split,
        audio=place.audio(audio, base),
        text=_text(entry),
        speaker=str(_field(entry, "speaker") or ""),
        language=str(_field(entry, "language") or ""),
        duration=duration,
        start=start,
        row=row,
    )


def _text(entry: dict[str, Any]) -> str | None:
    """The row's text, None where it has no such field at all."""
    return str(_field(entry, "text") or "") if any(name in entry for name in _NAMES["text"]) else None


def _field(entry: dict[str, Any], name: str) -> Any:
    return next((entry[key] for key in _NAMES[name] if entry.get(key) not in (None, "")), None)


def _seconds(entry: dict[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0 or (name == "duration" and not seconds):
        raise ValueError(f"{name} {value!r} can't be a number of seconds")
    return seconds


# --- Common Voice ----------------------------------------------------------------------------------

_CLIPS, _DURATIONS = "clips", "clip_durations.tsv"


def find_commonvoice(place: Place, name: str) -> list[str]:
    """`<name>.tsv`, beside the folder `clips` or with an audio_root."""
    above, _, own = name.rpartition("/")
    if place.audio_root is None and _CLIPS not in place.folders(above):
        return []
    there = [file for file in place.files(above) if file.endswith(".tsv")]
    return [place.uri(above, file) for file in (own, f"{own}.tsv") if file in there]


def read_commonvoice(uri: str, split: str, place: Place) -> Iterator[Utterance]:
    """Utterances of one table with `path` and `sentence`; optional: `client_id`, `locale`, clip_durations.tsv.

    There is no quoting: a quote is a letter of the sentence. A row of another length than the head is
    an utterance with the problem bad_metadata.
    """
    rows = ((number, line.split("\t")) for number, line in read_lines(uri))
    head = next(rows, (0, []))[1]
    if not {"path", "sentence"} <= set(head):
        raise UserError(f"{uri}:1", "has no columns path and sentence, as Common Voice's tables have")
    seconds = _clip_seconds(storage.join(parent(uri), _DURATIONS))
    for number, cells in rows:
        entry = dict(zip(head, cells, strict=False))
        clip = entry.get("path", "")
        yield Utterance(
            id=stem(clip) or f"{stem(uri.rsplit('/', 1)[-1])}:{number}",
            split=split,
            audio=place.audio(clip, storage.join(parent(uri), _CLIPS)),
            text=entry.get("sentence", ""),
            row=f"{uri}:{number}",
            speaker=entry.get("client_id", ""),
            language=entry.get("locale", ""),
            duration=seconds.get(clip),
            problem=_row_problem(head, cells, clip),
        )


def _row_problem(head: list[str], cells: list[str], clip: str) -> tuple[str, str] | None:
    if len(cells) != len(head):
        return "bad_metadata", f"the row has {len(cells)} columns, the head {len(head)}"
    return None if clip else ("bad_metadata", "the row names no clip")


def _clip_seconds(uri: str) -> dict[str, float]:
    """Seconds of each clip; empty without the table, which only later releases have."""
    if not storage.exists(uri):
        return {}
    cells = (line.split("\t") for _, line in read_lines(uri))
    return {row[0]: int(row[1]) / 1000 for row in cells if len(row) > 1 and row[1].strip().isdigit() and int(row[1])}
