"""One shard of a transcribed corpus: one Parquet file that is created once, and what follows from it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import pyarrow as pa
from pydantic import BaseModel

from foldray import storage
from foldray.data.audio import encode_flac
from foldray.data.source_audio import read_audio
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage.layout import TranscriptsFolder
from foldray.storage.parquet import check_names, parse_parquet
from foldray.transcription.agreement import as_lines, corpus_line, left_out
from foldray.transcription.corpus_plan import Settings
from foldray.transcription.corpus_rows import TRANSCRIPTS_SCHEMA, TranscriptRow, encode, transcribed
from foldray.transcription.inputs import MAX_SEGMENT
from foldray.transcription.recogniser import Recogniser


class ShardSummary(BaseModel):
    """What a shard holds: counts, seconds of audio, SHA-256 of its Parquet file."""

    number: int
    rows: int
    seconds: float
    sha256: str
    errors: dict[str, int]
    left_out: dict[str, int] = {}
    kept: int = 0
    notes: int = 0


def transcribe_shard(
    load: Callable[[], Recogniser],
    out: TranscriptsFolder,
    number: int,
    utterances: Sequence[Utterance],
    settings: Settings,
) -> tuple[ShardSummary, str]:
    """Transcribe a shard of a plan, unless an intact one is there, and write what follows from it.

    The Parquet file is created, never replaced: of two workers with the same shard one wins, and both go on with the
    file of the winner. Everything else is computed from that file.

    Args:
        load: Returns the model; not called where the shard is there.
        out: The folder of the job.
        number: The shard's number in the plan.
        utterances: Its utterances.
        settings: How they are transcribed.

    Returns:
        What the shard holds, and the lines of what is kept of it.

    Raises:
        UserError: The model can't be loaded or can't decode so, or a store is unreachable.
    """
    data, rows = _created(load, out.shard(number), utterances, settings)
    if not storage.exists(out.lines(number)):
        storage.write_bytes(out.lines(number), as_lines(rows))
    kept, missing = _kept(out, number, utterances, rows, settings)
    errors = Counter(row["error"] for row in rows if row["error"])
    summary = ShardSummary(
        number=number,
        rows=len(rows),
        seconds=sum(row["seconds"] for row in rows),
        sha256=hashlib.sha256(data).hexdigest(),
        errors=dict(errors),
        left_out=dict(missing),
        kept=len(kept),
        notes=sum(bool(row["notes"]) for row in rows),
    )
    return summary, "".join(kept)


def _created(
    load: Callable[[], Recogniser], file: str, utterances: Sequence[Utterance], settings: Settings
) -> tuple[bytes, list[TranscriptRow]]:
    """The bytes and rows of a shard's file, which is created if no intact one is there."""
    data = storage.read_bytes(file) if storage.exists(file) else b""
    rows = _parse(data, file) if data else None
    if rows is None:
        data = encode(transcribed(load(), utterances, settings))
        if not storage.create(file, data):
            data = storage.read_bytes(file)
        rows = _parse(data, file)
        if rows is None:
            raise UserError(file, "was damaged while it was written; start the job again")
    if [row["id"] for row in rows] != [each.id for each in utterances]:
        raise UserError(file, "has not the utterances of the plan; remove it")
    return data, rows


def _parse(data: bytes, where: str) -> list[TranscriptRow] | None:
    """The rows of a shard. A damaged one, as file systems without links may leave it, is removed: None."""
    try:
        parquet = parse_parquet(data, where)
        check_names(parquet.schema, TRANSCRIPTS_SCHEMA.names)
        table = parquet.read(TRANSCRIPTS_SCHEMA.names).cast(TRANSCRIPTS_SCHEMA)
        table.validate(full=True)
        rows: list[TranscriptRow] = table.to_pylist()
        return rows
    except pa.ArrowException:
        storage.remove(where)
        return None


# --- What is kept -----------------------------------------------------------------------------------


def _kept(
    out: TranscriptsFolder,
    number: int,
    utterances: Sequence[Utterance],
    rows: Sequence[TranscriptRow],
    settings: Settings,
) -> tuple[list[str], Counter[str]]:
    """The lines of what is kept, and how many of the others are left out for which reason."""
    kept: list[str] = []
    missing: Counter[str] = Counter()
    for i, (utterance, row) in enumerate(zip(utterances, rows, strict=True)) if settings.agree else ():
        assert settings.agree
        if reason := left_out(row, settings.agree.most):
            missing[reason] += 1
            continue
        clip = out.clip(number, i) if utterance.entry else None
        if clip:
            _write_clip(storage.join(out.corpus, clip), utterance)
        kept.append(corpus_line(row, utterance, clip))
    return kept, missing


def _write_clip(uri: str, utterance: Utterance) -> None:
    """The audio of an utterance as a file of its own: JSON lines can't name what is inside a container."""
    if not storage.exists(uri):
        storage.write_bytes(uri, encode_flac(read_audio(utterance, MAX_SEGMENT)))
