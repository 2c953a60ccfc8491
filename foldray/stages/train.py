"""The stages `train` and `resume`."""

from collections.abc import Sequence

from typing_extensions import TypedDict  # pydantic checks no other before Python 3.12

from foldray import storage
from foldray.config.load import override_spec
from foldray.config.run_files import read_run_facts, read_run_spec
from foldray.config.spec import RunSpec
from foldray.data.corpora import Corpus
from foldray.data.manifest import Manifest, read_manifest
from foldray.errors import UserError
from foldray.runtime.terminal import print_status, training_bar
from foldray.stages.prepare import checked_corpus, prepare_checked
from foldray.storage.layout import Run
from foldray.storage.records import read_as


class TrainResult(TypedDict):
    """A run that is trained.

    Attributes:
        run_id: Its id.
        run: Its URI.
        step: Its last step.
        resumed_from_step: The step it was resumed from; 0 if it was never interrupted.
    """

    run_id: str
    run: str
    step: int
    resumed_from_step: int


def train_stage(spec: RunSpec) -> TrainResult:
    """Prepare the corpus if it is not prepared, then train, or resume the spec's run.

    Raises:
        UserError: The spec cannot be trained, with the field to change.
    """
    from foldray.training.trackers import check_trackers
    from foldray.training.workers import cpus_needed

    check_trackers(spec)
    found = checked_corpus(spec.corpus, spec.storage.root)
    if not _is_trained(spec, found):
        _check_model(spec)
    corpus, _ = prepare_checked(found, spec.corpus, spec.storage.root, cpus_needed(spec))
    return train_prepared(spec, corpus)


def _check_model(spec: RunSpec) -> None:
    """Raise UserError for a spec that can't be trained. Imports no torch if its model's shape is known."""
    from foldray.models.costs import PLAN_VOCAB_SIZE, counts_of
    from foldray.models.families import FAMILIES
    from foldray.training.tokens import check_units

    if spec.augment.noise_path:
        from foldray.data.augment import Noises

        Noises(spec.augment.noise_path)
    check_units(spec)
    planned = spec.planned_model()
    if planned.model.checkpoint or not FAMILIES[planned.model.family].ctc:
        from foldray.models.stock_config import check_model

        check_model(planned)
    counts_of(planned, PLAN_VOCAB_SIZE)


def train_prepared(spec: RunSpec, corpus: str) -> TrainResult:
    """Train on a prepared corpus, as `train_stage`."""
    from foldray.training.launch import describe, run_uri
    from foldray.training.lengths import check_shortest
    from foldray.training.run_folder import is_finished
    from foldray.training.tokens import check_tokens

    manifest = read_manifest(corpus)
    run = run_uri(spec, spec.run_id(manifest.corpus_id, manifest.tokenizer.digest))
    if not is_finished(run):
        check_tokens(spec, manifest)
        _check_validation(spec, manifest)
        check_shortest(spec, corpus, manifest)
        describe(spec, corpus, run)
    return _train(spec, corpus, run)


def _check_validation(spec: RunSpec, manifest: Manifest) -> None:
    """Raise UserError if the spec needs validation scores and there is no validation split."""
    if manifest.rows_by_split.get("valid"):
        return
    for field, needed in (("patience", spec.valid.patience), ("final", spec.valid.final == "best")):
        if needed:
            raise UserError(f"valid.{field}", "needs a validation split; corpus.splits with 'valid' in it carves one")
    print_status("note      there is no validation split; corpus.splits with 'valid' in it carves one")


def _train(spec: RunSpec, corpus: str, run: str) -> TrainResult:
    from foldray.training.launch import train
    from foldray.training.run_folder import is_finished

    if not is_finished(run):
        least, most = spec.scale.least_workers, spec.scale.most_workers
        workers = f"{most} workers" if least == most else f"{least} to {most} workers"
        print_status(f"training  {run}, {workers}{_newest(run, ', resuming from')}")
    try:
        with training_bar() as on_record:
            trained = train(spec, corpus, run, on_record=on_record)
    except KeyboardInterrupt:
        print_status(f"training  interrupted{_newest(run, ', newest checkpoint:') or ', no checkpoint yet'}")
        raise
    _print_distances(trained.run)
    print_status(f"trained   {trained.step} steps{_resumed(trained.step, trained.resumed_from_step)}: {trained.run}")
    return {
        "run_id": trained.run_id,
        "run": trained.run,
        "step": trained.step,
        "resumed_from_step": trained.resumed_from_step,
    }


def resume_stage(run: str, overrides: Sequence[str] = ()) -> TrainResult:
    """Resume a run from its URI alone.

    It may lie in another store than when it began. Neither the raw corpus nor the checkpoint that it started from is
    needed; a teacher (`loss.teacher`) is.

    Args:
        run: STORE/runs/RUN_ID.
        overrides: `key=value` of the sections scale, checkpoint and tracking, which describe the machine.

    Raises:
        UserError: The URI is not a run, its prepared corpus is gone, or an override would change its results.
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
            raise UserError(override, "a resumed run keeps its spec; only scale, checkpoint and tracking may change")
    begun = read_run_spec(folder.uri)
    spec = override_spec(begun.in_store(store), list(overrides))
    if changed := begun.other_results(spec):
        raise UserError(
            changed, "changes what the run computes; a resumed run keeps its spec. Start another with `train`"
        )
    check_trackers(spec)
    corpus = store.corpus(read_run_facts(folder.uri).corpus_id)
    if not storage.exists(corpus.manifest):
        raise UserError("RUN_URI", f"the run's prepared corpus {corpus.uri} is gone; `foldray train` prepares it again")
    return _train(spec, corpus.uri, folder.uri)


def _is_trained(spec: RunSpec, corpus: Corpus) -> bool:
    """Return whether the run of this spec is finished; its id depends on the prepared corpus."""
    from foldray.training.launch import run_uri
    from foldray.training.run_folder import is_finished

    prepared = spec.store.corpus(corpus.corpus_id)
    if not storage.exists(prepared.manifest):
        return False
    return is_finished(run_uri(spec, spec.run_id(corpus.corpus_id, read_manifest(prepared.uri).tokenizer.digest)))


class _Seed(TypedDict):
    """The contents of `seed.json`: where the weights come from, and how far each depth starts from it."""

    checkpoint: str
    method: str
    distances: dict[str, float]


def _print_distances(run: str) -> None:
    file = Run(run).seed_distances
    if storage.exists(file):
        seed = read_as(_Seed, file)
        listed = ", ".join(f"{distance:.2f} at depth {depth}" for depth, distance in seed["distances"].items())
        print_status(f"seed      {seed['method']}, starts at a relative distance of {listed} from {seed['checkpoint']}")


def _newest(run: str, words: str) -> str:
    """Return words and the step of a run's newest complete checkpoint; nothing without one."""
    from foldray.training.run_folder import whole_checkpoints

    found = whole_checkpoints(run)
    return f"{words} step {found[-1].step}" if found else ""


def _resumed(step: int, resumed_from: int) -> str:
    if resumed_from == step:
        return " (done before)"
    return f" (resumed from step {resumed_from})" if resumed_from else ""
