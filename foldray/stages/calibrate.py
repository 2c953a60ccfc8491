"""The stage `calibrate`: chooses the threshold of `--depth auto` on a validation set."""

import numpy as np
from typing_extensions import TypedDict

from foldray import storage
from foldray.data.audio import decode_flac
from foldray.data.epoch import plan_scoring
from foldray.data.manifest import Manifest, read_index, read_manifest
from foldray.data.reader import Row, RowReader
from foldray.data.recording import Samples
from foldray.data.text import normalise
from foldray.errors import UserError
from foldray.evaluation.provenance import find_model
from foldray.models.costs import costs_of
from foldray.models.hub import is_page
from foldray.results.alignment import align_words
from foldray.results.auto_depth import AutoDepth, AutoPoint, write_auto
from foldray.runtime.terminal import counting
from foldray.stages.scoring_corpus import scoring_corpus
from foldray.transcription.auto import Measured, choose, curve_of, thinned
from foldray.transcription.recogniser import Piece, Recogniser
from foldray.transcription.words import FramePath


class Calibrated(TypedDict):
    """A calibration, and what its threshold gives on another split.

    Attributes:
        model: The model folder.
        auto: The calibration; None if no threshold saves anything at the stated loss.
        deepest: The deepest depth on the validation set.
        check: Name of the other split, and its points at the threshold and at the deepest depth; None without one.
    """

    model: str
    auto: AutoDepth | None
    deepest: AutoPoint
    check: tuple[str, AutoPoint, AutoPoint] | None


def calibrate_stage(
    model: str, store: str, data: str | None = None, split: str = "valid", check: str = "test", loss: float = 0.003
) -> Calibrated:
    """Choose the threshold of `--depth auto`, and write it with its curve into the model folder.

    Args:
        model: A run id in the store, a run or checkpoint URI, or a model folder.
        store: The store that run ids refer to.
        data: A prepared or raw corpus; by default that of the model's run.
        split: The split to calibrate on.
        check: A split to show the result on, if the corpus has it.
        loss: WER above that of the deepest depth which is allowed, a fraction.

    Raises:
        UserError: The model has one depth only or is in the hub's cache, or the corpus or split does not exist.
    """
    if not 0 <= loss <= 1:
        raise UserError("--loss", f"use 0 to 100 points of WER, not {100 * loss:g}")
    found = find_model(model, store)
    if found.run is None and is_page(model) and not storage.is_folder(model):
        fix = f"copy it with `hf download {model} --local-dir DIR`, and calibrate DIR"
        raise UserError(model, f"is in the hub's cache, where a calibration would be lost; {fix}")
    recogniser = Recogniser(found.uri)
    if len(recogniser.depths) < 2:
        raise UserError(model, f"runs one depth only ({recogniser.depths[0]}); auto chooses among several")
    corpus = scoring_corpus(found, data, split, also=check if check != split else "").uri
    manifest = read_manifest(corpus)
    if not manifest.rows_by_split.get(split):
        raise UserError("--split", f"the corpus has no '{split}'; it has {', '.join(sorted(manifest.rows_by_split))}")
    measured = measure(recogniser, corpus, manifest, split)
    point = choose(measured, loss)
    if point is None:
        return {"model": found.uri, "auto": None, "deepest": measured.deepest, "check": None}
    curve = thinned(curve_of(measured))
    size = len(measured.words_N)
    auto = AutoDepth(
        recogniser.depths, point.threshold, loss, manifest.corpus_id, split, size, measured.deepest, point, curve
    )
    write_auto(found.uri, auto)
    checked = None
    if check != split and manifest.rows_by_split.get(check):
        other = measure(recogniser, corpus, manifest, check)
        checked = check, other.at(point.threshold), other.deepest
    return {"model": found.uri, "auto": auto, "deepest": measured.deepest, "check": checked}


def measure(recogniser: Recogniser, corpus: str, manifest: Manifest, split: str) -> Measured:
    """Decode a prepared split at every depth."""
    index = read_index(corpus, manifest, split)
    reader = RowReader(index)
    batches = plan_scoring(index, recogniser.batch_seconds)
    errors: list[list[int]] = []
    confidences: list[list[float]] = []
    rows: list[tuple[int, float]] = []
    with counting("scoring") as on_progress:
        for done, positions in enumerate(batches, start=1):
            batch = [reader(int(position)) for position in positions]
            clips = [decode_flac(row["audio"]) for row in batch]
            by_depth = [_decoded(recogniser, batch, clips, depth, manifest) for depth in recogniser.depths]
            errors += [list(each) for each in zip(*([e for e, _ in depth] for depth in by_depth), strict=True)]
            confidences += [list(each) for each in zip(*([c for _, c in depth] for depth in by_depth), strict=True)]
            rows += [(len(row["text"].split()), len(clip) / 16_000) for row, clip in zip(batch, clips, strict=True)]
            on_progress(done, len(batches))
    return Measured(
        np.array(errors).T,
        np.array(confidences).T,
        np.array([words for words, _ in rows]),
        np.array([seconds for _, seconds in rows]),
        np.array([cost.macs_per_audio_second for cost in costs_of(recogniser.model, recogniser.depths)]),
    )


def _decoded(
    recogniser: Recogniser, rows: list[Row], clips: list[Samples], depth: int, manifest: Manifest
) -> list[tuple[int, float]]:
    """Word errors and confidence of each row."""
    found: list[FramePath | Piece] = []
    if recogniser.is_ctc:
        found += recogniser.frame_paths(clips, depth)
    else:
        found += recogniser.decoded(clips, depth, [row["language"] for row in rows], times=True)
    scored = []
    for row, each in zip(rows, found, strict=True):
        text = each.text if isinstance(each, Piece) else recogniser.text_of(each)
        if recogniser.tokenizer.special and manifest.text:
            text = normalise(text, manifest.text)
        errors = len(align_words(row["text"], text).replace("C", ""))
        scored.append((errors, recogniser.confidence(each)))
    return scored
