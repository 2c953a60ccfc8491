"""Scoring every depth of a model on a prepared split."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
from transformers import PreTrainedModel

from foldray.data.epoch import MicroBatch, plan_scoring
from foldray.data.manifest import Manifest, read_index
from foldray.data.reader import Row
from foldray.data.stream import Batch, BatchLoader
from foldray.evaluation.decode import Decoding, recognise
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
class DepthScore:
    """Scores of one depth on one split. WER and CER are fractions; `rtfx` is audio seconds per wall second."""

    depth: int
    wer: float
    cer: float
    rtfx: float
    peak_rss_bytes: int
    utterances: list[ScoredUtterance]


def score_depths(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    corpus: str,
    manifest: Manifest,
    split: str,
    depths: tuple[int, ...],
    *,
    decoding: Decoding = "ctc",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[DepthScore]:
    """Decode and score a prepared split at each depth, in float32.

    Depths run one after the other, so that speed and peak memory are measured for each by itself.

    Args:
        model: a folded model.
        corpus: URI of the prepared corpus.
        depths: depths to score, trained or not.
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

        scores.append(_score_depth(model, depth, loader, batches, tokenizer, decoding, on_batch))
    return scores


def _score_depth(
    model: PreTrainedModel,
    depth: int,
    loader: BatchLoader,
    batches: Sequence[MicroBatch],
    tokenizer: Tokenizer,
    decoding: Decoding,
    on_batch: Callable[[int], None],
) -> DepthScore:
    set_depths(model, [depth])
    _reset_peak_rss()
    loader.expect(np.concatenate(batches))
    utterances: list[ScoredUtterance] = []
    seconds = audio = 0.0
    for done, planned in enumerate(batches, start=1):
        rows = loader.read(planned)
        began = time.perf_counter()
        batch, hypotheses = _decode_batch(model, loader, rows, tokenizer, decoding)
        seconds += time.perf_counter() - began
        audio += batch.seconds
        speakers = {row["id"]: row["speaker"] for row in rows}
        utterances += [
            _align(i, speakers[i], reference, hypothesis)
            for i, reference, hypothesis in zip(batch.ids, batch.texts, hypotheses, strict=True)
        ]
        on_batch(done)
    return _score(depth, sorted(utterances, key=lambda each: each.id), audio / seconds)


def _decode_batch(
    model: PreTrainedModel, loader: BatchLoader, rows: list[Row], tokenizer: Tokenizer, decoding: Decoding
) -> tuple[Batch, list[str]]:
    """Decode a batch; RTFx times this: audio decoding, features, model and beam search, not storage."""
    batch = loader.collate(rows, epoch=0).to(model.device)
    return batch, recognise(model, batch.encoder_inputs, batch.frames_B, tokenizer, decoding)


def _score(depth: int, utterances: list[ScoredUtterance], rtfx: float) -> DepthScore:
    references, hypotheses = [u.reference for u in utterances], [u.hypothesis for u in utterances]
    words = sum(u.num_words for u in utterances)
    errors = sum(u.substitutions + u.deletions + u.insertions for u in utterances)
    return DepthScore(
        depth=depth,
        wer=errors / words,
        cer=float(jiwer.cer(references, hypotheses)),
        rtfx=rtfx,
        peak_rss_bytes=_peak_rss(),
        utterances=utterances,
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
