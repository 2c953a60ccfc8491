"""The prepared corpus that a model is scored on: the run's own, another, or a raw one that is prepared for it."""

from contextlib import suppress
from dataclasses import dataclass

from foldray import storage
from foldray.config.corpus import BUILTIN_CORPUS, VALIDATION_NAMES, CorpusSpec, TextProfile
from foldray.config.run_files import read_run_facts, read_run_spec
from foldray.data.manifest import read_manifest
from foldray.errors import UserError, one_line
from foldray.evaluation.provenance import FoundModel, trained_by
from foldray.runtime.terminal import print_status
from foldray.stages.prepare import prepare_corpus
from foldray.storage.layout import PreparedCorpus, Store


@dataclass(frozen=True)
class ScoringCorpus:
    """A prepared corpus to score on.

    Attributes:
        uri: Its folder.
        scored_as: How its texts, which are as they were written, are normalised before they are compared; None for
            texts that are compared as they are.
    """

    uri: str
    scored_as: TextProfile | None = None


def scoring_corpus(
    found: FoundModel, data: str | None, split: str, *, also: str = "", as_written: bool = False
) -> ScoringCorpus:
    """Return the corpus to score a model on, and prepare a raw one.

    Args:
        found: The model.
        data: A prepared or raw corpus; by default that of the model's run.
        split: The split to score.
        also: Another split that is prepared with it, if a raw corpus has it.
        as_written: Whether its references should be as they were written. Then a raw corpus is prepared with
            `corpus.text=as_is`, by default the one that the run's corpus was prepared from, if it is still there.

    Raises:
        UserError: There is no such corpus, or it can't be prepared.
    """
    run = trained_by(found)
    like = read_run_spec(run).corpus if run else None
    if data is None:
        if run is None or like is None:
            raise UserError("--data", f"set it to the corpus to score {found.uri} on")
        if not (as_written and _is_there(like, split)):
            return _prepared(Store(found.store).corpus(read_run_facts(run).corpus_id).uri, like, as_written)
        return _prepare(like, _fields(like.path, split), found.store, as_written)
    named = [Store(found.store).corpus(data)] if storage.is_relative(data) else []
    for prepared in (PreparedCorpus(storage.absolute(data)), *named):
        if storage.exists(prepared.manifest):
            return _prepared(prepared.uri, like, as_written)
    if data != BUILTIN_CORPUS and not storage.is_folder(storage.absolute(data)):
        raise UserError("--data", f"{data} is neither a prepared corpus nor a folder with one")
    elsewhere: dict[str, object] = {"layout": "auto", "audio_root": None, "audio_places": (), "follow_links": False}
    elsewhere["cross_validate"] = None
    # Text must be normalised as the model learned it.
    like = like or CorpusSpec(path=data)
    if also:
        with suppress(UserError):  # about the other split, or raised again below
            return _prepare(like, _fields(data, split, also) | elsewhere, found.store, as_written)
    return _prepare(like, _fields(data, split) | elsewhere, found.store, as_written)


def _is_there(corpus: CorpusSpec, split: str) -> bool:
    """Whether a split of a run's raw corpus can be prepared by itself: it is no part of another, and can be reached."""
    if corpus.cross_validate or split in VALIDATION_NAMES:
        return False
    return corpus.path == BUILTIN_CORPUS or storage.is_folder(storage.absolute(corpus.path))


def _prepared(uri: str, like: CorpusSpec | None, as_written: bool) -> ScoringCorpus:
    """A prepared corpus, whose texts are what they are."""
    if not as_written:
        return ScoringCorpus(uri)
    text = read_manifest(uri).text
    if text != "as_is":
        problem = f"references are those of {PreparedCorpus(uri).corpus_id}, normalised (corpus.text={text})"
        print_status(f"note      {problem}; give --data the raw corpus to have them as they were written")
        return ScoringCorpus(uri)
    return ScoringCorpus(uri, _scored_as(like.text if like else "english"))


def _scored_as(text: TextProfile) -> TextProfile | None:
    return None if text == "as_is" else text


def _fields(path: str, *splits: str) -> dict[str, object]:
    """What scoring changes in the spec of a corpus."""
    # Scoring compares words: it needs no tokenizer, for which there may be no 'train', and drops no long text.
    return {
        "path": path,
        "splits": splits,
        "max_quarantine": 1.0,
        "units": "characters",
        "tokenizer": None,
        "vocab_size": None,
        "frame_seconds": 1e-3,
    }


def _prepare(like: CorpusSpec, fields: dict[str, object], store: str, as_written: bool) -> ScoringCorpus:
    text = {"text": "as_is"} if as_written else {}
    try:
        corpus = CorpusSpec.model_validate({**like.model_dump(), **fields, **text})
    except ValueError as error:
        raise UserError("--data", f"{fields['path']} can't be scored: {one_line(error)}") from None
    uri = prepare_corpus(corpus, store)[0]
    return ScoringCorpus(uri, _scored_as(like.text) if as_written else None)
