"""The stages up to a trained model, each from a spec to what it left in the store: prepare, train, resume."""

from collections.abc import Sequence
from typing import Any

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.config.load import override_spec
from foldray.config.run_files import read_run_facts, read_run_spec
from foldray.config.spec import RunSpec
from foldray.data.corpora import Corpus
from foldray.data.manifest import Manifest, read_index, read_manifest
from foldray.errors import UserError
from foldray.runtime.terminal import print_status, training_bar
from foldray.stages.prepare import checked_corpus, prepare_checked
from foldray.storage.layout import Run


def train_stage(spec: RunSpec) -> dict[str, Any]:
    """Prepare if need be, then train to the end or go on: run_id, run, step, resumed_from_step."""
    from foldray.data.augment import Noises
    from foldray.models.count import fold_on_meta
    from foldray.models.stock_config import check_model
    from foldray.training.trackers import check_trackers
    from foldray.training.workers import cpus_needed

    check_trackers(spec)
    found = checked_corpus(spec.corpus, spec.storage.root)
    model = None
    if not _is_trained(spec, found):
        if spec.augment.noise_path:
            Noises(spec.augment.noise_path)
        check_model(spec.found_model(), spec.fold.plan())
        model = fold_on_meta(spec.found_model(), spec.fold.plan(), vocab_size=32)
    corpus, _ = prepare_checked(found, spec.corpus, spec.storage.root, cpus_needed(spec))
    return train_prepared(spec, corpus, model)


def train_prepared(spec: RunSpec, corpus: str, model: Any = None) -> dict[str, Any]:
    """As `train_stage`, on a prepared corpus; `model`: its shape, where it is known."""
    from foldray.training.final_model import is_finished
    from foldray.training.launch import describe, run_uri

    manifest = read_manifest(corpus)
    run = run_uri(spec, spec.run_id(manifest.corpus_id, manifest.tokenizer.digest))
    if not is_finished(run):
        if model:
            _say_unlearnable(model, corpus, manifest)
        _check_validation(spec, manifest)
        describe(spec, corpus, run)
    return _train(spec, corpus, run)


def _check_validation(spec: RunSpec, manifest: Manifest) -> None:
    """Refuse what would need scores where there is nothing to score. Raises UserError."""
    if manifest.rows_by_split.get("valid"):
        return
    for field, asked in (("patience", spec.valid.patience), ("final", spec.valid.final == "best")):
        if asked:
            raise UserError(f"valid.{field}", "needs a validation split; corpus.splits with 'valid' in it carves one")
    print_status("note      there is no validation split; corpus.splits with 'valid' in it carves one")


def _train(spec: RunSpec, corpus: str, run: str) -> dict[str, Any]:
    from foldray.training.final_model import is_finished
    from foldray.training.launch import train

    if not is_finished(run):
        least, most = spec.scale.least_workers, spec.scale.most_workers
        workers = f"{most} workers" if least == most else f"{least} to {most} workers"
        print_status(f"training  {run}, {workers}{_newest(run, ', going on from')}")
    try:
        with training_bar() as on_record:
            trained = train(spec, corpus, run, on_record=on_record)
    except KeyboardInterrupt:
        print_status(f"training  interrupted{_newest(run, ', newest checkpoint:') or ', no checkpoint yet'}")
        raise
    _say_distances(trained.run)
    print_status(f"trained   {trained.step} steps{_resumed(trained.step, trained.resumed_from_step)}: {trained.run}")
    return {
        "run_id": trained.run_id,
        "run": trained.run,
        "step": trained.step,
        "resumed_from_step": trained.resumed_from_step,
    }


def resume_stage(run: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Go on with a run of which nothing is at hand but its URI: run_id, run, step, resumed_from_step.

    The store is the one that the URI lies in, wherever it was when the run began; neither the raw corpus nor the
    checkpoint that the run started from is needed. `overrides` may change the machine (scale, checkpoint, tracking).
    """
    from foldray.training.trackers import check_trackers

    folder = Run(storage.absolute(run))
    store = folder.store
    if store is None or not storage.exists(folder.spec):
        raise UserError(
            "RUN_URI", f"{folder.uri} is not a run (STORE/runs/RUN_ID with a spec.json); `foldray results` lists runs"
        )
    for override in overrides:
        if override.partition(".")[0].partition("=")[0] not in ("scale", "checkpoint", "tracking"):
            raise UserError(override, "a run goes on as it began; only scale, checkpoint and tracking may change")
    begun = read_run_spec(folder.uri)
    spec = override_spec(begun.in_store(store), list(overrides))
    if changed := begun.other_results(spec):
        raise UserError(changed, "decides what a run computes; a run goes on as it began. Start another with `train`")
    check_trackers(spec)
    corpus = store.corpus(read_run_facts(folder.uri).corpus_id)
    if not storage.exists(corpus.manifest):
        raise UserError("RUN_URI", f"the run's prepared corpus {corpus.uri} is gone; `foldray train` prepares it again")
    return _train(spec, corpus.uri, folder.uri)


def _is_trained(spec: RunSpec, corpus: Corpus) -> bool:
    """Whether the run of this spec is done; only a prepared corpus can tell."""
    from foldray.training.final_model import is_finished
    from foldray.training.launch import run_uri

    prepared = spec.store.corpus(corpus.corpus_id)
    if not storage.exists(prepared.manifest):
        return False
    return is_finished(run_uri(spec, spec.run_id(corpus.corpus_id, read_manifest(prepared.uri).tokenizer.digest)))


def _say_unlearnable(model: Any, corpus: str, manifest: Manifest) -> None:
    """How many training utterances have too few frames for their labels in this very model; CTC skips them."""
    import numpy as np

    from foldray.models.families import family_of
    from foldray.models.features import output_frames

    if not family_of(model).ctc:
        return
    index = read_index(corpus, manifest, "train")
    lengths, which = np.unique(index.num_samples, return_inverse=True)
    frames = np.array(output_frames(model, lengths.tolist()))[which]
    count = int((index.num_labels + index.num_repeats > frames).sum())
    if count:
        frame = lengths[-1] / SAMPLE_RATE / max(1, int(frames.max()))
        mend = f"corpus.frame_seconds={frame:.2g} would set them aside"
        print_status(
            f"note      {count} of {len(index)} training utterances have more labels than frames and teach nothing; "
            f"{mend}"
        )


def _say_distances(run: str) -> None:
    file = Run(run).seed_distances
    if storage.exists(file):
        seed = storage.read_json(file)
        listed = ", ".join(f"{distance:.2f} at depth {depth}" for depth, distance in seed["distances"].items())
        print_status(f"seed      {seed['method']}, began at a relative distance of {listed} from {seed['checkpoint']}")


def _newest(run: str, words: str) -> str:
    """Words and the step of a run's newest whole checkpoint; nothing where there is none."""
    from foldray.training.checkpoint import whole_checkpoints

    found = whole_checkpoints(run)
    return f"{words} step {found[-1].step}" if found else ""


def _resumed(step: int, resumed_from: int) -> str:
    if resumed_from == step:
        return " (done before)"
    return f" (resumed from step {resumed_from})" if resumed_from else ""
