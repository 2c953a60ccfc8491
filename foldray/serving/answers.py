"""Transcripts in the response formats of OpenAI's API."""

import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

from foldray.transcription.formats import cut_cues, rounded, written
from foldray.transcription.transcript import Transcript, Word, join_words

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
FORMATS: tuple[ResponseFormat, ...] = get_args(ResponseFormat)
TIMED: tuple[ResponseFormat, ...] = ("srt", "vtt", "verbose_json")
"""The formats that need times of words."""
Granularity = Literal["word", "segment"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


def as_text(found: Transcript, kind: ResponseFormat) -> str:
    """A transcript as text, SRT or WebVTT."""
    return written("", found, "text" if kind == "text" else "srt" if kind == "srt" else "vtt")


def as_object(
    found: Transcript,
    kind: ResponseFormat,
    granularities: Sequence[Granularity] = ("segment",),
    language: str = "",
    ignored: Sequence[str] = (),
) -> dict[str, Any]:
    """A transcript as json or verbose_json, with the depth and the fields that had no effect.

    Args:
        found: The transcript; with words for verbose_json.
        kind: json or verbose_json.
        granularities: Whether verbose_json has words, segments or both.
        language: The language of the request; "und" (ISO 639-2: undetermined) for none.
        ignored: Fields of the request that had no effect.

    Example:
        >>> as_object(transcript, "json")
        {'text': 'hello world', 'depth': 12, 'confidence': 0.97}
    """
    own = {"depth": found.depth, "confidence": rounded(found.confidence)}
    notes = {name: list(values) for name, values in (("notes", found.notes), ("ignored", ignored)) if values}
    if kind == "json":
        return {"text": found.text, **own, **notes}
    values: dict[str, Any] = {
        "task": "transcribe",
        "language": language or "und",
        "duration": round(found.seconds, 3),
        "text": found.text,
    }
    if "segment" in granularities:
        values["segments"] = [_segment(number, cue) for number, cue in enumerate(cut_cues(found.words))]
    if "word" in granularities:
        values["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in found.words
        ]
    return {**values, **own, **notes}


def _segment(number: int, cue: Sequence[Word]) -> dict[str, Any]:
    """One segment; null where OpenAI's field is one of Whisper's decoder that no model here has."""
    text = join_words([word.text for word in cue])
    raw = text.encode()
    mean = sum(math.log(max(word.confidence, 1e-10)) for word in cue) / len(cue)
    return {
        "id": number,
        "start": round(cue[0].start, 3),
        "end": round(cue[-1].end, 3),
        "text": text,
        "avg_logprob": round(mean, 4),
        "compression_ratio": round(len(raw) / len(zlib.compress(raw)), 3),
        "temperature": 0.0,
        "seek": None,
        "tokens": None,
        "no_speech_prob": None,
    }
