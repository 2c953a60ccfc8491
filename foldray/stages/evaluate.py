"""The stage `evaluate`: score a model at every depth and append the result rows to the store."""

import dataclasses
from typing import TYPE_CHECKING, NotRequired, TypedDict

from foldray import storage
from foldray.config.corpus import VALIDATION_NAMES
from foldray.config.run_files import read_run_facts
from foldray.config.spec import RunSpec
from foldray.data.manifest import read_manifest
from foldray.evaluation.beam_options import BeamOptions
from foldray.evaluation.provenance import FoundModel, find_model, weights_digest
from foldray.models.device import CPU
from foldray.models.hub import is_page
from foldray.results.reader import read_rows
from foldray.results.rows import ResultRow, write_rows
from foldray.runtime.terminal import counting
from foldray.stages.scoring_corpus import ScoringCorpus, scoring_corpus

if TYPE_CHECKING:
    from foldray.evaluation.score import DepthScore


class ScoredModel(TypedDict):
    """The run id of a model and its result rows; and the files for the Open ASR Leaderboard, if asked for."""

    run_id: str
    rows: list[ResultRow]
    leaderboard: NotRequired[list[str]]


def evaluate_stage(
    model: str,
    store: str,
    data: str | None = None,
    depths: tuple[int, ...] = (),
    split: str = "test",
    decoding: str | None = None,
    beam: BeamOptions | None = None,
    leaderboard: str | None = None,
    device: str = CPU,
) -> ScoredModel:
    """Score a model at every depth and append the rows to the store.

    Args:
        model: A run id in the store, a run or checkpoint URI, a model folder, or OWNER/NAME of a fold on the hub.
        store: The store that run ids refer to; rows of models without a run go there.
        data: A prepared or raw corpus; by default that of the model's run.
        depths: The depths to score; by default all trained ones.
        split: The split to score.
        decoding: `ctc`, `attention`, `joint` or `beam`; by default `ctc` where the model has it.
        beam: Options of `beam`: an n-gram, hotwords, a closed list of words.
        leaderboard: A folder for what the Open ASR Leaderboard scores: texts as they were written, so a raw corpus is
            prepared once more, with `corpus.text=as_is`. The rows compare normalised texts, as always.
        device: Device of torch.

    Raises:
        UserError: The model, corpus, split, depth or decoding does not exist or does not fit.
    """
    found = find_model(model, store)
    if leaderboard is not None:
        storage.check_writable(storage.absolute(leaderboard), "--leaderboard")
    corpus = scoring_corpus(found, data, split, as_written=leaderboard is not None)
    rows, scores = _evaluate(found, corpus, depths, split, decoding, beam, device)
    scored: ScoredModel = {"run_id": rows[0]["run_id"], "rows": rows}
    if leaderboard is not None:
        from foldray.evaluation.leaderboard import write_leaderboard

        name = model if is_page(model) else f"foldray/{scored['run_id']}"
        scored["leaderboard"] = write_leaderboard(storage.absolute(leaderboard), name, rows, scores)
    return scored


def _evaluate(
    found: FoundModel,
    corpus: ScoringCorpus,
    depths: tuple[int, ...],
    split: str,
    decoding: str | None,
    beam: BeamOptions | None,
    device: str,
) -> "tuple[list[ResultRow], list[DepthScore]]":
    import torch
    from torch import nn

    from foldray.evaluation.decode import check_decoding, parse_decoding, search_or, usual_decoding
    from foldray.evaluation.result_rows import result_rows
    from foldray.evaluation.score import score_depths
    from foldray.models.fold import stack_of
    from foldray.models.processor import read_tokenizer
    from foldray.models.save_load import load_model

    manifest = read_manifest(corpus.uri)
    if split in VALIDATION_NAMES and split not in manifest.rows_by_split:
        split = "valid"
    asked = parse_decoding(decoding, beam)
    model = load_model(found.uri)
    nn.Module.to(model, torch.device(device))
    decoder = asked or usual_decoding(model)
    check_decoding(model, decoder)
    if found.run is None:  # so that two folders with the same name stay apart
        found = dataclasses.replace(found, name=f"{found.name}-{weights_digest(model)}")
    tokenizer = read_tokenizer(found.uri)
    how = search_or(decoder, beam, tokenizer)
    with counting("scoring") as on_progress:
        chosen = depths or stack_of(model).plan.depths
        place = (corpus.uri, manifest, split, chosen)
        scores = score_depths(
            model, tokenizer, *place, decoding=how, scored_as=corpus.scored_as, on_progress=on_progress
        )
    name = how if isinstance(how, str) else how.name
    rows, hypotheses = result_rows(found, model, manifest, split, name, scores)
    write_rows(found.store, rows, hypotheses)
    return rows, scores


def score_run(spec: RunSpec, run: str, step: int, split: str = "test", device: str = CPU) -> list[ResultRow]:
    """Return the rows of every trained depth of a finished run on its own corpus, scoring it if they are missing."""
    from foldray.models.families import FAMILIES

    found = find_model(run, spec.storage.root)
    corpus = read_run_facts(run).corpus_id
    place = (step, corpus, split, "ctc" if FAMILIES[spec.model.family].ctc else "attention")
    rows = [
        row
        for row in read_rows(found.store, found.name)
        if (row["step"], row["corpus"], row["split"], row["decoding"]) == place
    ]
    if not {row["depth"] for row in rows} >= set(spec.fold.depths):
        rows = evaluate_stage(run, spec.storage.root, split=split, device=device)["rows"]
    return sorted(rows, key=lambda row: row["depth"])
