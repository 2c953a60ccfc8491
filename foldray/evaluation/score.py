"""Scoring every depth of a model on a prepared split."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
from transformers import PreTrainedModel

from foldray.config.corpus import TextProfile
from foldray.data.epoch import MicroBatch, plan_scoring
from foldray.data.manifest import Manifest, read_index
from foldray.data.reader import Row
from foldray.data.stream import Batch, BatchLoader
from foldray.data.text import normalise
from foldray.evaluation.decode import Decoding, recognise
from foldray.evaluation.word_scores import WordSearch
from foldray.models.fold import set_depths
from foldray.models.tokenizer import Tokenizer
from foldray.results.alignment import align_words
from foldray.runtime.memory import peak_rss

MAX_DURATION = 60.0
"""Seconds of padded audio in one batch."""


@dataclass(frozen=True)
class ScoredUtterance:
    """The hypothesis for one utterance at one depth, and its word errors (see `foldray.results.alignment`)."""

    id: str
    speaker: str
    reference: str
    hypothesis: str
    num_words: int
    substitutions: int
    deletions: int
    insertions: int
    alignment: str


@dataclass(frozen=True)
class Transcript:
    """What the corpus and the model say of one utterance, before any normalisation of the scoring.

    Attributes:
        id: The utterance.
        seconds: Its length.
        decode_seconds: Wall time to decode it: its share of the batch.
        reference: The text as the prepared corpus has it.
        hypothesis: The text as the model wrote it.
    """

    id: str
    seconds: float
    decode_seconds: float
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class DepthScore:
    """Scores of one depth on one split. WER and CER are fractions; `rtfx` is audio seconds per wall second.

    `utterances` are those that count, `transcripts` all of the split; both are sorted by id.
    """

    depth: int
    wer: float
    cer: float
    rtfx: float
    peak_rss_bytes: int
    utterances: list[ScoredUtterance]
    transcripts: list[Transcript]


def score_depths(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    corpus: str,
    manifest: Manifest,
    split: str,
    depths: tuple[int, ...],
    *,
    decoding: Decoding | WordSearch = "ctc",
    scored_as: TextProfile | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[DepthScore]:
    """Decode and score a prepared split at each depth, in float32.

    Depths run one after the other, so that speed and peak memory are measured for each by itself.

    Args:
        model: a folded model.
        corpus: URI of the prepared corpus.
        depths: depths to score, trained or not.
        scored_as: normalise references and hypotheses so before they are compared, for a corpus whose texts are as
            they were written; an utterance whose reference has no words then does not count.
        on_progress: called with the batches done and in total, over all depths.

    Raises:
        UserError: for a depth without a path, before anything is scored.
    """
    depths = tuple(sorted(set(depths)))
    set_depths(model, depths)  # refuses depths without a path
    index = read_index(corpus, manifest, split)
    loader = BatchLoader(index, model, tokenizer, None, seed=0)
    batches = plan_scoring(index, MAX_DURATION)
    set_depths(model, depths[:1])
    rows = loader.read(batches[-1])
    _decode_batch(model, loader, rows, tokenizer, decoding)  # warm-up, not timed
    scores = []
    for number, depth in enumerate(depths):

        def on_batch(done: int, before: int = number * len(batches)) -> None:
            on_progress(before + done, len(depths) * len(batches))

        transcripts, speakers = _transcribe(model, depth, loader, batches, tokenizer, decoding, on_batch)
        compared = _compared(transcripts, tokenizer, manifest.text, scored_as)
        utterances = [_align(i, speakers[i], reference, hypothesis) for i, reference, hypothesis in compared]
        scores.append(_score(depth, utterances, transcripts))
    return scores


def _transcribe(
    model: PreTrainedModel,
    depth: int,
    loader: BatchLoader,
    batches: Sequence[MicroBatch],
    tokenizer: Tokenizer,
    decoding: Decoding | WordSearch,
    on_batch: Callable[[int], None],
) -> tuple[list[Transcript], dict[str, str]]:
    """Decode every utterance at one depth; returns transcripts sorted by id, and the speaker of each."""
    set_depths(model, [depth])
    _reset_peak_rss()
    loader.expect(np.concatenate(batches))
    transcripts: list[Transcript] = []
    speakers: dict[str, str] = {}
    for done, planned in enumerate(batches, start=1):
        rows = loader.read(planned)
        began = time.perf_counter()
        batch, hypotheses = _decode_batch(model, loader, rows, tokenizer, decoding)
        share = (time.perf_counter() - began) / len(rows)
        speakers |= {row["id"]: row["speaker"] for row in rows}
        transcripts += [
            Transcript(i, seconds, share, reference, hypothesis)
            for i, seconds, reference, hypothesis in zip(batch.ids, batch.lengths, batch.texts, hypotheses, strict=True)
        ]
        on_batch(done)
    return sorted(transcripts, key=lambda each: each.id), speakers


def _compared(
    transcripts: Sequence[Transcript], tokenizer: Tokenizer, text: TextProfile | None, scored_as: TextProfile | None
) -> list[tuple[str, str, str]]:
    """Id, reference and hypothesis of each utterance as they are compared."""
    if scored_as:
        both = [(t.id, normalise(t.reference, scored_as), normalise(t.hypothesis, scored_as)) for t in transcripts]
        return [each for each in both if each[1]]
    if tokenizer.special and text:  # a model that is not fine-tuned writes in its own way
        return [(t.id, t.reference, normalise(t.hypothesis, text)) for t in transcripts]
    return [(t.id, t.reference, t.hypothesis) for t in transcripts]


def _decode_batch(
    model: PreTrainedModel,
    loader: BatchLoader,
    rows: list[Row],
    tokenizer: Tokenizer,
    decoding: Decoding | WordSearch,
) -> tuple[Batch, list[str]]:
    """Decode a batch; RTFx times this: audio decoding, features, model and beam search, not storage."""
    batch = loader.collate(rows, epoch=0).to(model.device)
    inputs = (batch.encoder_inputs, batch.frames_B)
    texts = recognise(model, *inputs, tokenizer, decoding, languages=batch.languages, seconds=batch.longest)
    return batch, texts


def _score(depth: int, utterances: list[ScoredUtterance], transcripts: list[Transcript]) -> DepthScore:
    references, hypotheses = [u.reference for u in utterances], [u.hypothesis for u in utterances]
    words = sum(u.num_words for u in utterances)
    errors = sum(u.substitutions + u.deletions + u.insertions for u in utterances)
    return DepthScore(
        depth=depth,
        wer=errors / words,
        cer=float(jiwer.cer(references, hypotheses)),
        rtfx=sum(t.seconds for t in transcripts) / sum(t.decode_seconds for t in transcripts),
        peak_rss_bytes=_peak_rss(),
        utterances=utterances,
        transcripts=transcripts,
    )


def _align(utterance: str, speaker: str, reference: str, hypothesis: str) -> ScoredUtterance:
    alignment = align_words(reference, hypothesis)
    return ScoredUtterance(
        id=utterance,
        speaker=speaker,
        reference=reference,
        hypothesis=hypothesis,
        num_words=len(reference.split()),
        substitutions=alignment.count("S"),
        deletions=alignment.count("D"),
        insertions=alignment.count("I"),
        alignment=alignment,
    )


PROCESS = Path("/proc/self")


def _reset_peak_rss() -> None:
    """Reset the kernel's peak of resident memory, if the system supports it (proc(5), clear_refs)."""
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def _peak_rss() -> int:
    """Peak of resident memory in bytes: since `_reset_peak_rss` on Linux, since the process started elsewhere."""
    with suppress(OSError, StopIteration):
        lines = (PROCESS / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return peak_rss()
