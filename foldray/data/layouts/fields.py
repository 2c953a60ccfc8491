"""Fields of a corpus' rows: the names that every layout knows them by, and the checks of their values."""

from collections.abc import Container, Mapping

from foldray.storage.text import MAX_TEXT_BYTES

FIELD_NAMES = {
    "audio": ("audio", "audio_filepath", "audio_filename", "path", "file", "file_name"),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "id": ("id", "segment_id", "utterance_id"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "language": ("language", "lang", "locale"),
    "duration": ("duration",),
}
"""The names that each field is recognised by, best first."""

Problem = tuple[str, str]
"""A quarantine reason and its detail."""


def first_value(fields: Mapping[str, object], name: str) -> object:
    """The first value of a field that is neither null nor empty, None if there is none."""
    return next((fields[key] for key in FIELD_NAMES[name] if fields.get(key) not in (None, "")), None)


def name_of(fields: Mapping[str, object], name: str) -> str:
    """A field as a name, "" if there is none; 0 is a name."""
    value = first_value(fields, name)
    return "" if value is None else str(value)


def text_of(value: object) -> tuple[str | None, Problem | None]:
    """A text and None, or what is left of it and why the value is no text.

    One that is too long is left out: a file of some kilobytes may repeat it in every row.
    """
    if isinstance(value, str) and len(value) > MAX_TEXT_BYTES:
        return "", ("bad_metadata", f"the text has {len(value):,} characters, over {MAX_TEXT_BYTES:,}")
    if value is None or isinstance(value, str):
        return value, None
    if isinstance(value, bytes):
        return None, ("bad_text", "the text is a column of bytes, not of strings")
    kinds: dict[type, str] = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    fix = "join its words" if isinstance(value, list) else "write a string"
    return None, (
        "bad_text",
        f"the text is {kinds.get(type(value), 'a value')} ({str(value)[:60]}), not a string; {fix}",
    )


def has_field(names: Container[str], field: str) -> bool:
    """Whether one of a field's names is among those of a row or table."""
    return any(name in names for name in FIELD_NAMES[field])
