"""The rows of a transcribed corpus: one for each utterance, with its text or its error."""

import functools
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldray.data.utterance import Utterance
from foldray.errors import UserError, scrubbed
from foldray.storage.parquet import open_parquet
from foldray.transcription.agreement import disagreement, without_options
from foldray.transcription.corpus_plan import Settings, seconds_of
from foldray.transcription.files import Recording, transcribe, transcribe_at
from foldray.transcription.formats import rounded
from foldray.transcription.inputs import read_input
from foldray.transcription.recogniser import Recogniser
from foldray.transcription.transcript import Transcript

TranscriptRow = dict[str, Any]
"""A row of `TRANSCRIPTS_SCHEMA`."""

_WORD = pa.struct([("word", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("confidence", pa.float64())])
_OTHER = pa.struct([("depth", pa.int32()), ("text", pa.string()), ("confidence", pa.float64())])
TRANSCRIPTS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.string()),  # without options
        ("split", pa.string()),
        ("offset", pa.float64()),  # of a segment
        ("channel", pa.int32()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("text", pa.string()),
        ("seconds", pa.float64()),
        ("depth", pa.int32()),  # the deepest that a part ran at; 0 with an error
        ("confidence", pa.float64()),
        ("words", pa.list_(_WORD)),
        ("others", pa.list_(_OTHER)),  # the texts of other depths
        ("disagreement", pa.float64()),
        ("notes", pa.list_(pa.string())),
        ("error", pa.string()),  # a code, as in the quarantine of a prepared corpus; empty for none
        ("detail", pa.string()),
    ]
)


def encode(rows: Sequence[TranscriptRow]) -> bytes:
    """Transcripts as a Parquet file."""
    target = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), TRANSCRIPTS_SCHEMA)
    pq.write_table(table, target, compression="zstd", write_page_checksum=True)
    return target.getvalue()


def transcribed(recogniser: Recogniser, utterances: Sequence[Utterance], settings: Settings) -> list[TranscriptRow]:
    """The row of each utterance, in their order."""
    known = _described(utterances)
    # Like lengths make batches without padding; rows of a row group stay together, since it is read as a whole.
    order = sorted(range(len(known)), key=lambda i: 0.0 if known[i].entry else seconds_of(known[i]))
    recordings = [
        Recording(known[i].id, functools.partial(read_input, known[i]), known[i].language or settings.language)
        for i in order
    ]
    rows: dict[int, TranscriptRow] = {}
    for i, found in zip(order, _transcripts(recogniser, recordings, settings), strict=True):
        rows[i] = _row(known[i], found, settings)
    return [rows[i] for i in range(len(known))]


def _transcripts(
    recogniser: Recogniser, recordings: list[Recording], settings: Settings
) -> Iterator[list[Transcript] | UserError]:
    """Of each recording the transcripts, the last of which is the text."""
    seconds, times = settings.chunk_seconds, recogniser.has_times
    if settings.agree:
        pair = settings.agree.depths
        for _, found in transcribe_at(recogniser, recordings, pair, chunk_seconds=seconds, words=times):
            yield found
        return
    for _, one in transcribe(recogniser, recordings, settings.depth, chunk_seconds=seconds, words=times):
        yield one if isinstance(one, UserError) else [one]


def _described(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The utterances with speaker and language of a prepared corpus, whose plan leaves them in its shards."""
    groups = {(u.audio, u.entry.first) for u in utterances if u.entry and u.entry.kind == "row" and not u.problem}
    found = {group: _read_descriptions(*group) for group in groups}
    described = []
    for each in utterances:
        rows = found.get((each.audio, each.entry.first), []) if each.entry else []
        if each.entry and each.entry.second < len(rows):
            row = rows[each.entry.second]
            each = replace(each, speaker=row.get("speaker", ""), language=row.get("language", ""))
        described.append(each)
    return described


def _read_descriptions(uri: str, group: int) -> list[dict[str, str]]:
    """Speaker and language of each row of a row group; nothing where it can't be read, which its audio tells."""
    try:
        with open_parquet(uri) as file:
            columns = [name for name in ("speaker", "language") if file.schema.get_field_index(name) >= 0]
            rows = file.read_row_group(group, columns).to_pylist() if columns else []
    except (pa.ArrowException, OSError, UserError):
        return []
    return [{name: str(row[name] or "") for name in columns} for row in rows]


def _row(utterance: Utterance, found: list[Transcript] | UserError, settings: Settings) -> TranscriptRow:
    row: TranscriptRow = {
        "id": utterance.id,
        "audio": scrubbed(without_options(utterance.audio)),
        "split": utterance.split,
        "offset": utterance.start,
        "channel": utterance.channel,
        "speaker": utterance.speaker,
        "language": utterance.language or settings.language,
        "depth": 0,
        "text": "",
        "seconds": 0.0,
        "confidence": 0.0,
        "words": [],
        "others": [],
        "disagreement": None,
        "notes": [],
        "error": "",
        "detail": "",
    }
    if isinstance(found, UserError):
        reason, detail = reason_of(found.problem)
        return row | {"error": reason, "detail": detail}
    *others, deep = found
    words = [
        {"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "confidence": round(w.confidence, 4)}
        for w in deep.words
    ]
    return row | {
        "text": deep.text,
        "depth": deep.depth,
        "seconds": round(deep.seconds, 3),
        "confidence": rounded(deep.confidence),
        "words": words,
        "others": [{"depth": o.depth, "text": o.text, "confidence": rounded(o.confidence)} for o in others],
        "disagreement": disagreement(others[0].text, deep.text) if others else None,
        "notes": list(deep.notes),
    }


def reason_of(problem: str) -> tuple[str, str]:
    """The code and the detail of an error: the codes are those of the quarantine of a prepared corpus.

    Example:
        >>> reason_of("can't be used (silent: peak below 0.0001 of full scale)")
        ('silent', 'peak below 0.0001 of full scale')
    """
    if found := re.fullmatch(r"can't be used \((\w+): (.*)\)", problem, re.DOTALL):
        return found[1], found[2]
    return ("missing_file" if problem.endswith("does not exist") else "unreadable"), problem
