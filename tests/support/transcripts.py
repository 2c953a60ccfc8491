"""Texts of files by the stage `transcribe`, and transcribed corpora without Ray."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from foldray.errors import UserError
from foldray.stages.transcribe import transcribe_stage
from foldray.stages.transcribe_corpus import transcribe_corpus
from foldray.transcription import corpus_job
from foldray.transcription.corpus_job import TranscriptsManifest


def texts_of(
    model: str, files: Sequence[str], depth: int | None = None, decoding: str | None = None, language: str = ""
) -> list[str | UserError]:
    """The text of each file in order, or its error."""
    _, results = transcribe_stage(model, "", files, depth, decoding, language)
    return [found if isinstance(found, UserError) else found.text for _, found in results]


def transcribe_serially(model: str, given: Sequence[str], out: Path, **options: Any) -> TranscriptsManifest:
    """`transcribe_corpus` with its shards one after the other in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_job, "_run", _run_serially)
        return transcribe_corpus(model, str(out.parent), given, str(out), **options)[1]


def _run_serially(
    plan: corpus_job.Plan, model: str, out: Any, _workers: int | None, _use_gpu: bool
) -> Iterator[dict[str, Any]]:
    worker = corpus_job.Transcriber(model, out.uri, plan.settings.model_dump_json(), 1, "cpu")
    for number in range(plan.shards):
        yield worker.shard(number)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """All rows of a transcribed corpus, of which Parquet and JSON lines hold the same."""
    rows = []
    for file in sorted(out.glob("shards/*.parquet")):
        own = pq.read_table(file).to_pylist()
        lines = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
        assert lines == [{name: value for name, value in row.items() if value not in (None, "", [])} for row in own]
        rows += own
    return rows
