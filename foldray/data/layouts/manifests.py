"""Layouts with one manifest for each split: JSON lines (NeMo's among them), and Common Voice's tables."""

import math
from collections.abc import Iterator

from pydantic import JsonValue

from foldray import storage
from foldray.data.layouts.source_folder import SourceFolder, file_name, parent, stem
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage.text import JsonObject, parse_object, read_lines

_FIELD_NAMES = {
    "audio": ("audio", "audio_filepath", "path", "file"),
    "text": ("text", "transcript", "sentence"),
    "language": ("lang", "language"),
    "speaker": ("speaker", "speaker_id", "spk"),
}
"""The names that each field is recognised by, best first."""


def find_jsonl(source: SourceFolder, name: str) -> list[str]:
    """`<name>.jsonl` or NeMo's `<name>_manifest.json`, or all of `<name>/*.jsonl`."""
    above, _, own = name.rpartition("/")
    endings = ("", ".jsonl", ".json", "_manifest.jsonl", "_manifest.json")
    for file in (own + ending for ending in endings):
        if file.endswith((".jsonl", ".json")) and file in source.files(above):
            return [source.uri(above, file)]
    return [source.uri(name, file) for file in source.files(name) if file.endswith(".jsonl")]


def read_jsonl(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of one manifest: one object a line with `audio` and `text`.

    Optional: `id`, `speaker`, `lang`, `duration` and `offset` (seconds; both together name a segment of a longer
    file). NeMo's `audio_filepath` is recognised too. Relative audio paths start at the folder of the manifest, and are
    the ids of rows without one. An invalid row becomes an utterance with the problem bad_metadata.
    """
    base = parent(uri)
    for number, line in read_lines(uri):
        row = f"{uri}:{number}"
        try:
            yield _parse_row(line, row, base, split, source)
        except ValueError as error:
            problem = ("bad_metadata", str(error))
            yield Utterance(f"{file_name(uri)}:{number}", split, "", None, row, problem=problem)


def _parse_row(line: str, row: str, base: str, split: str, source: SourceFolder) -> Utterance:
    """The utterance of a line. Raises ValueError with the detail for the quarantine."""
    fields = parse_object(line)
    audio = str(_field(fields, "audio") or "")
    if not audio:
        raise ValueError(f"has no audio file; set one of {', '.join(_FIELD_NAMES['audio'])}")
    start, duration = (_seconds(fields, name) for name in ("offset", "duration"))
    if start is not None and duration is None:
        raise ValueError("has an offset but no duration; a segment needs both")
    segment = "" if start is None else f"@{start!r}+{duration!r}"
    return Utterance(
        id=str(fields.get("id") or stem(audio) + segment),
        split=split,
        audio=source.audio(audio, base),
        text=_text(fields),
        speaker=str(_field(fields, "speaker") or ""),
        language=str(_field(fields, "language") or ""),
        duration=duration,
        start=start,
        row=row,
    )


def _text(fields: JsonObject) -> str | None:
    """The row's text, None where it has no such field at all."""
    return str(_field(fields, "text") or "") if any(name in fields for name in _FIELD_NAMES["text"]) else None


def _field(fields: JsonObject, name: str) -> JsonValue:
    return next((fields[key] for key in _FIELD_NAMES[name] if fields.get(key) not in (None, "")), None)


def _seconds(fields: JsonObject, name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        seconds = float(value)  # type: ignore[arg-type]  # of a list or object it raises
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0 or (name == "duration" and not seconds):
        raise ValueError(f"{name} {value!r} is not a valid number of seconds")
    return seconds


# --- Common Voice ----------------------------------------------------------------------------------

_CLIPS, _DURATIONS = "clips", "clip_durations.tsv"


def find_commonvoice(source: SourceFolder, name: str) -> list[str]:
    """Find the table `<name>.tsv` of Common Voice, if `clips/` lies next to it or the source has an `audio_root`."""
    above, _, own = name.rpartition("/")
    if source.audio_root is None and _CLIPS not in source.folders(above):
        return []
    tables = [file for file in source.files(above) if file.endswith(".tsv")]
    return [source.uri(above, file) for file in (own, f"{own}.tsv") if file in tables]


def read_commonvoice(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of one table with `path` and `sentence`.

    Optional: `client_id`, `locale`, and clip_durations.tsv. There is no quoting: a quote is a letter of the sentence.
    A row with fewer or more cells than the header becomes an utterance with the problem bad_metadata.
    """
    rows = ((number, line.split("\t")) for number, line in read_lines(uri))
    header = next(rows, (0, []))[1]
    if not {"path", "sentence"} <= set(header):
        raise UserError(f"{uri}:1", "has no columns path and sentence, as Common Voice's tables have")
    seconds = _clip_seconds(storage.join(parent(uri), _DURATIONS))
    for number, cells in rows:
        fields = dict(zip(header, cells, strict=False))
        clip = fields.get("path", "")
        yield Utterance(
            id=stem(clip) or f"{stem(uri.rsplit('/', 1)[-1])}:{number}",
            split=split,
            audio=source.audio(clip, storage.join(parent(uri), _CLIPS)),
            text=fields.get("sentence", ""),
            row=f"{uri}:{number}",
            speaker=fields.get("client_id", ""),
            language=fields.get("locale", ""),
            duration=seconds.get(clip),
            problem=_row_problem(header, cells, clip),
        )


def _row_problem(header: list[str], cells: list[str], clip: str) -> tuple[str, str] | None:
    if len(cells) != len(header):
        return "bad_metadata", f"the row has {len(cells)} columns, the header {len(header)}"
    return None if clip else ("bad_metadata", "the row names no clip")


def _clip_seconds(uri: str) -> dict[str, float]:
    """Seconds of each clip; empty without the table, which only later releases have."""
    if not storage.exists(uri):
        return {}
    cells = (line.split("\t") for _, line in read_lines(uri))
    return {row[0]: int(row[1]) / 1000 for row in cells if len(row) > 1 and row[1].strip().isdigit() and int(row[1])}
