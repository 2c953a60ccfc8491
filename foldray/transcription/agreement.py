"""Pseudo-labels: transcripts whose depths agree, as the rows of a corpus.

Where a shallow and a deep path of one model write the same words, both are more often right. The deep text is the
label, and the shallow path can be trained on it.
"""

import json
from collections.abc import Sequence
from typing import Any

from foldray.data.text import normalise
from foldray.data.utterance import Utterance
from foldray.results.alignment import align_words


def disagreement(shallow: str, deep: str) -> float | None:
    """WER of the shallow text against the deep one, without regard to case and punctuation; None without deep words.

    Example:
        >>> disagreement("one to three", "One, two, three.")
        0.3333333333333333
    """
    reference = normalise(deep, "unicode")
    if not reference:
        return None
    alignment = align_words(reference, normalise(shallow, "unicode"))
    return (len(alignment) - alignment.count("C")) / len(reference.split())


def left_out(row: dict[str, Any], most: float) -> str | None:
    """Why a transcript is no row of the corpus: error, no_text or disagree; None for one that is."""
    if row["error"]:
        return "error"
    if row["disagreement"] is None:
        return "no_text"
    return "disagree" if row["disagreement"] > most else None


def corpus_line(row: dict[str, Any], utterance: Utterance, clip: str | None) -> str:
    """A kept transcript as a line of `train.jsonl`.

    Args:
        row: The transcript.
        utterance: What was transcribed.
        clip: The file of its audio, relative to the corpus, where the source has it in a container.
    """
    values: dict[str, object] = {
        "id": row["id"],
        "audio": clip or without_options(utterance.audio),
        "text": row["text"],
        "duration": row["seconds"],
        "speaker": row["speaker"],
        "language": row["language"],
        "confidence": row["confidence"],
        "disagreement": round(row["disagreement"], 4),
    }
    if utterance.start is not None and not clip:
        values |= {"offset": utterance.start, "duration": utterance.duration}
    if utterance.channel is not None and not clip:
        values["channel"] = utterance.channel
    return json.dumps(values, ensure_ascii=False) + "\n"


def without_options(audio: str) -> str:
    """A URI as rows of a corpus name it: its server comes from the spec, and a row that brings its own is refused."""
    return audio.partition("?")[0] if "://" in audio else audio


def as_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """Transcripts as JSON lines, without what is empty."""
    shown = ({name: value for name, value in row.items() if value not in (None, "", [])} for row in rows)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in shown).encode()
