"""Layouts with one manifest for each split: JSON lines (NeMo's among them), and Common Voice's tables."""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

from foldray import storage
from foldray.data.layouts.fields import FIELD_NAMES, first_value, has_field, name_of, text_of
from foldray.data.layouts.source_folder import SourceFolder, file_name, parent, stem
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage.text import (
    JsonObject,
    NotTextError,
    check_object,
    parse_array,
    parse_object,
    read_lines,
    split_lines,
)

_Given = TypeVar("_Given")


def find_jsonl(source: SourceFolder, name: str) -> list[str]:
    """`<name>.jsonl` or NeMo's `<name>_manifest.json`, or all of `<name>/*.jsonl`."""
    above, _, own = name.rpartition("/")
    endings = ("", ".jsonl", ".json", "_manifest.jsonl", "_manifest.json")
    for file in (own + ending for ending in endings):
        if file.endswith((".jsonl", ".json")) and file in source.files(above):
            return [source.uri(above, file)]
    return [source.uri(name, file) for file in source.files(name) if file.endswith(".jsonl")]


def read_jsonl(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of one manifest: one object a line with `audio` and `text`, or one array of such objects.

    Optional: `id`, `speaker`, `lang`, `channel`, `duration` and `offset` (seconds; both together name a segment of a
    longer file). `FIELD_NAMES` lists other names. Relative audio paths start at the folder of the manifest, and are the
    ids of rows without one. An invalid row becomes an utterance with the problem bad_metadata, not_utf8 or bad_text.

    Raises:
        UserError: The manifest is in no encoding that is read, or too long an array.
    """
    base = parent(uri)
    for number, given in _objects(source.text_file(uri)):
        row = f"{uri}:{number}"
        try:
            if isinstance(given, Exception):
                raise given
            yield _parse_row(given, row, base, split, source)
        except ValueError as error:
            problem = ("not_utf8" if isinstance(error, NotTextError) else "bad_metadata", str(error))
            yield Utterance(f"{file_name(uri)}:{number}", split, "", None, row, problem=problem)


def _objects(uri: str) -> Iterator[tuple[int, JsonObject | ValueError]]:
    """The number of each row from 1, and its object or what is wrong with it."""
    data = storage.read_bytes(uri)
    array = parse_array(data, uri)
    if array is not None:
        yield from ((number, _tried(check_object, value)) for number, value in enumerate(array, start=1))
        return
    for line in split_lines(data, uri):
        yield line.number, NotTextError(line.problem) if line.problem else _tried(parse_object, line.text)


def _tried(parse: Callable[[_Given], JsonObject], given: _Given) -> JsonObject | ValueError:
    try:
        return parse(given)
    except ValueError as error:
        return error


def _parse_row(fields: JsonObject, row: str, base: str, split: str, source: SourceFolder) -> Utterance:
    """The utterance of an object. Raises ValueError with the detail for the quarantine."""
    audio = _audio_path(fields)
    start, duration = (_seconds(fields, name) for name in ("offset", "duration"))
    if start is not None and duration is None:
        raise ValueError("has an offset but no duration; a segment needs both")
    channel = _channel(fields)
    segment = ("" if start is None else f"@{start!r}+{duration!r}") + ("" if channel is None else f"#{channel}")
    text, problem = text_of(first_value(fields, "text"))
    return Utterance(
        id=name_of(fields, "id") or stem(audio) + segment,
        split=split,
        audio=source.audio(audio, base),
        text="" if text is None and has_field(fields, "text") else text,
        speaker=name_of(fields, "speaker"),
        language=name_of(fields, "language"),
        duration=duration,
        start=start,
        channel=channel,
        row=row,
        problem=problem,
    )


def _audio_path(fields: JsonObject) -> str:
    """The path of a row's audio, also where `datasets` writes it as an object. Raises ValueError if there is none."""
    audio = first_value(fields, "audio")
    if isinstance(audio, dict):
        if audio.get("bytes") not in (None, ""):
            raise ValueError("has its audio as bytes, which JSON cannot hold; export with to_parquet() of datasets")
        audio = audio.get("path")
        if not audio:
            raise ValueError("has an object without a path as audio; name a file, or use to_parquet() of datasets")
    if audio is None:
        raise ValueError(f"has no audio file; set one of {', '.join(FIELD_NAMES['audio'])}")
    if not isinstance(audio, str):
        raise ValueError(f"audio {str(audio)[:60]} is not the path of a file")
    return audio


def _channel(fields: JsonObject) -> int | None:
    value = fields.get("channel")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"channel {value!r} is not the number of a channel, counted from 0")


def _seconds(fields: JsonObject, name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        seconds = float(value)  # type: ignore[arg-type]  # of a list or object it raises
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0 or (name == "duration" and not seconds):
        raise ValueError(f"{name} {value!r:.60} is not a valid number of seconds")
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
    """Yield the utterances of one table with `path` and `sentence`, or other names of `FIELD_NAMES`.

    Optional: `client_id`, `locale`, and clip_durations.tsv. There is no quoting: a quote is a letter of the sentence.
    A row with fewer or more cells than the header becomes an utterance with the problem bad_metadata.
    """
    lines = read_lines(source.text_file(uri))
    header = next((line.text.split("\t") for line in lines), [])
    if not (has_field(header, "audio") and has_field(header, "text")):
        raise UserError(f"{uri}:1", "has no columns path and sentence, as Common Voice's tables have")
    seconds = _clip_seconds(source.text_file(storage.join(parent(uri), _DURATIONS)))
    for line in lines:
        cells = line.text.split("\t")
        fields = dict(zip(header, cells, strict=False))
        clip = name_of(fields, "audio")
        yield Utterance(
            id=stem(clip) or f"{stem(uri.rsplit('/', 1)[-1])}:{line.number}",
            split=split,
            audio=source.audio(clip, storage.join(parent(uri), _CLIPS)),
            text=name_of(fields, "text"),
            row=f"{uri}:{line.number}",
            speaker=name_of(fields, "speaker"),
            language=name_of(fields, "language"),
            duration=seconds.get(clip),
            problem=("not_utf8", line.problem) if line.problem else _row_problem(header, cells, clip),
        )


def _row_problem(header: list[str], cells: list[str], clip: str) -> tuple[str, str] | None:
    if len(cells) != len(header):
        return "bad_metadata", f"the row has {len(cells)} columns, the header {len(header)}"
    return None if clip else ("bad_metadata", "the row names no clip")


def _clip_seconds(uri: str) -> dict[str, float]:
    """Seconds of each clip; empty without the table, which only later releases have."""
    if not storage.exists(uri):
        return {}
    cells = (line.text.split("\t") for line in read_lines(uri))
    return {row[0]: int(row[1]) / 1000 for row in cells if len(row) > 1 and row[1].strip().isdigit() and int(row[1])}
