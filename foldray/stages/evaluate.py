"""The stage `evaluate`: score a model at every depth and append the result rows to the store."""

import dataclasses
from typing import TypedDict

from foldray import storage
from foldray.config.corpus import BUILTIN_CORPUS, VALIDATION_NAMES, CorpusSpec
from foldray.config.run_files import read_run_facts, read_run_spec
from foldray.config.spec import RunSpec
from foldray.data.manifest import read_manifest
from foldray.errors import UserError, one_line
from foldray.evaluation.provenance import FoundModel, find_model, trained_by, weights_digest
from foldray.results.reader import read_rows
from foldray.results.rows import ResultRow, write_rows
from foldray.runtime.terminal import counting
from foldray.stages.prepare import prepare_corpus
from foldray.storage.layout import PreparedCorpus, Store


class ScoredModel(TypedDict):
    """The run id of a model and its result rows."""

    run_id: str
    rows: list[ResultRow]


def evaluate_stage(
    model: str,
    store: str,
    data: str | None = None,
    depths: tuple[int, ...] = (),
    split: str = "test",
    decoding: str = "ctc",
) -> ScoredModel:
    """Score a model at every depth and append the rows to the store.

    Args:
        model: A run id in the store, a run or checkpoint URI, or a model folder.
        store: The store that run ids refer to; rows of models without a run go there.
        data: A prepared or raw corpus; by default that of the model's run.
        depths: The depths to score; by default all trained ones.
        split: The split to score.
        decoding: `ctc`, `attention` or `joint`.

    Raises:
        UserError: The model, corpus, split, depth or decoding does not exist or does not fit.
    """
    found = find_model(model, store)
    folder = _scoring_corpus(found, data, split)
    rows = _evaluate(found, folder, depths, split, decoding)
    return {"run_id": rows[0]["run_id"], "rows": rows}


def _scoring_corpus(found: FoundModel, data: str | None, split: str) -> str:
    """Return the prepared corpus to score on, preparing a raw one; by default the corpus of the model's run."""
    run, store = trained_by(found), Store(found.store)
    if data is None:
        if run is None:
            raise UserError("--data", f"set it to the corpus to score {found.uri} on")
        return store.corpus(read_run_facts(run).corpus_id).uri
    for prepared in (PreparedCorpus(storage.absolute(data)), store.corpus(data)):
        if storage.exists(prepared.manifest):
            return prepared.uri
    if data != BUILTIN_CORPUS and not storage.is_folder(storage.absolute(data)):
        raise UserError("--data", f"{data} is neither a prepared corpus nor a folder with one")
    # Text must be normalised as the model learned it.
    like = read_run_spec(run).corpus if run else CorpusSpec(path=data)
    fields = {"path": data, "layout": "auto", "audio_root": None, "splits": (split,), "max_quarantine": 1.0}
    # Scoring compares words: it needs no tokenizer, for which there may be no 'train', and drops no long text.
    fields |= {"cross_validate": None, "units": "characters", "vocab_size": None, "frame_seconds": 1e-3}
    try:
        corpus = CorpusSpec.model_validate({**like.model_dump(), **fields})
    except ValueError as error:
        raise UserError("--data", f"{data} can't be scored: {one_line(error)}") from None
    return prepare_corpus(corpus, found.store)[0]


def _evaluate(found: FoundModel, corpus: str, depths: tuple[int, ...], split: str, decoding: str) -> list[ResultRow]:
    from foldray.evaluation.decode import check_decoding, parse_decoding
    from foldray.evaluation.result_rows import result_rows
    from foldray.evaluation.score import score_depths
    from foldray.models.fold import stack_of
    from foldray.models.processor import read_tokenizer
    from foldray.models.save_load import load_model

    manifest = read_manifest(corpus)
    if split in VALIDATION_NAMES and split not in manifest.rows_by_split:
        split = "valid"
    decoder = parse_decoding(decoding)
    model = load_model(found.uri)
    check_decoding(model, decoder)
    if found.run is None:  # so that two folders with the same name stay apart
        found = dataclasses.replace(found, name=f"{found.name}-{weights_digest(model)}")
    with counting("scoring") as on_progress:
        chosen = depths or stack_of(model).plan.depths
        tokenizer = read_tokenizer(found.uri)
        place = (corpus, manifest, split, chosen)
        scores = score_depths(model, tokenizer, *place, decoding=decoder, on_progress=on_progress)
    rows, hypotheses = result_rows(found, model, manifest, split, decoding, scores)
    write_rows(found.store, rows, hypotheses)
    return rows


def score_run(spec: RunSpec, run: str, step: int, split: str = "test") -> list[ResultRow]:
    """Return the rows of every trained depth of a finished run on its own corpus, scoring it if they are missing."""
    found = find_model(run, spec.storage.root)
    corpus = read_run_facts(run).corpus_id
    place = (step, corpus, split, "ctc")
    rows = [
        row
        for row in read_rows(found.store, found.name)
        if (row["step"], row["corpus"], row["split"], row["decoding"]) == place
    ]
    if not {row["depth"] for row in rows} >= set(spec.fold.depths):
        rows = evaluate_stage(run, spec.storage.root, split=split)["rows"]
    return sorted(rows, key=lambda row: row["depth"])
