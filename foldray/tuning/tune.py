"""`foldray tune`: the trials of a search on Ray Tune, with everything worth keeping in the store.

Ray Tune's own state stays on the driver and is forgotten: it is a pickle. What goes on from an interruption are the
trials' records and runs. The same points are suggested again in the same order, finished and stopped trials only tell
what they had told, and so sampler and scheduler know again what they knew.
"""

import dataclasses
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from foldray import storage
from foldray.config.load import build_spec, override_spec
from foldray.config.search import SearchSpec
from foldray.config.spec import RUN, RunSpec
from foldray.data.manifest import read_manifest
from foldray.errors import UserError, one_line
from foldray.results.reader import newest_rows, read_rows
from foldray.results.searches import TrialRecord, read_records, write_record
from foldray.runtime.ray import start_ray
from foldray.runtime.terminal import print_status
from foldray.stages.prepare import prepare_stage
from foldray.stages.train import train_prepared
from foldray.storage.layout import SearchFolder
from foldray.training.fencing import Attempt, check_newest, claim_submission, newest_attempt
from foldray.training.trackers import check_trackers
from foldray.training.workers import cpus_needed
from foldray.tuning.progress import Progress, show_progress
from foldray.tuning.space import baseline_spec, overrides_of, points_left, sampler_of, start_spec, suggest, trial_spec
from foldray.tuning.trials import Report, run_trial, with_report

DRIVER_CPUS = 0.01
"""Logical CPUs of a trial's own process, which waits for its workers."""


ENDED = ("stopped", "finished")
TWIN_SECONDS = 2.0
"""How often a trial looks whether another one that trains the same run has ended."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a search reads and writes, and which try at it this is: a newer one takes it over."""

    corpus: str
    search: str
    attempt: Attempt

    def is_ours(self) -> bool:
        return newest_attempt(self.search) == self.attempt


def tune_stage(spec: RunSpec) -> dict[str, Any]:
    """Search what `search` of a spec names, or go on with it: search_id, search (its URI), trials, rows."""
    if spec.search is None:
        raise UserError("search", f"{spec.name} has no section `search`; `foldray tune quickstart-search` has one")
    check_trackers(spec)
    # What can't be trained is said before anything else is done.
    for depth in spec.search.baselines:
        baseline_spec(spec, depth)
    start_spec(spec)
    _start_ray(spec)
    corpus, manifest = prepare_stage(spec)
    place = (manifest.corpus_id, manifest.tokenizer.digest)
    search_id = f"{spec.name}-{spec.search_hash(*place)}"
    search = spec.store.search(search_id)
    described = {"corpus_id": manifest.corpus_id, "spec": spec.model_dump(mode="json")}
    storage.write_json(search.description, described)
    return _search(spec, corpus, search.uri)


def resume_search(search: str) -> dict[str, Any]:
    """Go on with a search of which nothing is at hand but its URI, STORE/searches/SEARCH_ID."""
    folder = SearchFolder(storage.absolute(search))
    store = folder.store
    if store is None or not storage.exists(folder.description):
        raise UserError("RUN_URI", f"{folder.uri} is not a search (STORE/searches/SEARCH_ID with a search.json)")
    described = storage.read_json(folder.description)
    begun = build_spec(described["spec"], folder.description)
    spec = begun.model_copy(update={"storage": begun.storage.model_copy(update={"root": store.root})})
    return _search(spec, store.corpus(described["corpus_id"]).uri, folder.uri)


def _search(spec: RunSpec, corpus: str, search: str) -> dict[str, Any]:
    assert spec.search
    known = {record.name: record for record in read_records(search)}
    done = sum(record.state in ENDED for record in known.values())
    going_on = f", {done} of them done before" if done else ""
    print_status(f"search    {search}, {spec.search.trials} trials{going_on}")
    _start_ray(spec)
    place = Place(corpus, search, claim_submission(search))
    base = _from_start(spec, corpus, search)
    with show_progress(spec.search.objectives) as progress:
        for record in known.values():
            progress.see(record)
        _run_trials(base, place, known, progress)
        _run_baselines(spec, place, progress)
    check_newest(search, place.attempt)
    records = read_records(search)
    if not any(record.state in ENDED for record in records if record.kind == "trial"):
        first = next((record.error for record in records if record.error), "")
        raise UserError("search", f"no trial came through; the first said: {first}")
    rows = [
        row
        for run_id in dict.fromkeys(record.run_id for record in records)
        for row in newest_rows(read_rows(base.storage.root, run_id))
    ]
    for record in records:
        if record.state == "failed":
            print_status(f"failed    {record.name} ({' '.join(record.overrides)}): {record.error}")
    return {
        "search_id": SearchFolder(search).search_id,
        "search": search,
        "trials": [{"name": record.name, **dataclasses.asdict(record)} for record in records],
        "rows": rows,
    }


def _start_ray(spec: RunSpec) -> None:
    """Before anything else starts one: without the state API, stopped trials would keep their workers' resources."""
    assert spec.search
    start_ray(spec.search.concurrent * (cpus_needed(spec) + DRIVER_CPUS), state_api=True)


def _from_start(spec: RunSpec, corpus: str, search: str) -> RunSpec:
    """The spec that trials vary: where `search.start` asks for it, it begins with the seed of a run trained now."""
    assert spec.search
    if not spec.search.start:
        return spec
    start = start_spec(spec)
    run_id = _run_id(start, corpus)
    record = TrialRecord(0, "start", run_id, dict(spec.search.start), [])
    trained = train_prepared(start, corpus)
    write_record(search, dataclasses.replace(record, state="finished", step=trained["step"], progress=1.0))
    return override_spec(spec, [f"model.checkpoint={RUN}{run_id}"])


def _run_id(spec: RunSpec, corpus: str) -> str:
    manifest = read_manifest(corpus)
    return spec.run_id(manifest.corpus_id, manifest.tokenizer.digest)


# --- Trials ----------------------------------------------------------------------------------------


def _run_trials(base: RunSpec, place: Place, known: dict[str, TrialRecord], progress: Progress) -> None:
    import optuna
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    asked = base.search
    assert asked
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    before = [record.config for record in known.values() if record.kind == "trial"]
    several = len(asked.objectives) > 1
    sampler = OptunaSearch(
        partial(_suggest, asked),
        metric=list(asked.objectives) if several else asked.objectives[0],
        mode=["min"] * len(asked.objectives) if several else "min",
        points_to_evaluate=[*before, *points_left(asked, before)] or None,
        sampler=sampler_of(asked),
    )
    asha: Any = ASHAScheduler  # typed for whole numbers; shares of a run do as well
    scheduler = asked.asha and asha(
        time_attr="progress",
        metric="loss",
        mode="min",
        # The last rung lies before the end: what is trained is scored.
        max_t=0.999,
        grace_period=asked.asha.grace,
        reduction_factor=asked.asha.reduction,
        stop_last_trials=False,
    )

    def trial(config: dict[str, Any]) -> None:
        drawn = {name: value for name, value in config.items() if name != "number"}
        record = TrialRecord(config["number"], "trial", "", drawn, overrides_of(asked, drawn))
        drive(lambda: trial_spec(base, drawn), place, record, asked.objectives)

    limited = ConcurrencyLimiter(sampler, max_concurrent=asked.concurrent)
    options = {"search_alg": limited, "scheduler": scheduler or None, "num_samples": asked.trials}
    _fit(trial, {}, options, place, "trial", progress)


def _suggest(search: SearchSpec, trial: Any) -> dict[str, Any]:
    """Draw a trial's fields, which Ray Tune hears of by itself, and give it its number."""
    suggest(search, trial)
    return {"number": trial.number}


def _run_baselines(spec: RunSpec, place: Place, progress: Progress) -> None:
    from ray import tune

    asked = spec.search
    if not asked or not asked.baselines:
        return

    def trial(config: dict[str, Any]) -> None:
        depth = config["depth"]
        overrides = [f"fold.num_layers={depth}", f"fold.depths=[{depth}]"]
        record = TrialRecord(depth, "baseline", "", {"depth": depth}, overrides)
        # Nothing is chosen between them, and what asks for another depth is not theirs to tell.
        drive(lambda: baseline_spec(spec, depth), place, record, ("wer",))

    space = {"depth": tune.grid_search(list(asked.baselines))}
    _fit(trial, space, {"max_concurrent_trials": asked.concurrent}, place, "baseline", progress)


def _fit(
    trial: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    options: dict[str, Any],
    place: Place,
    kind: str,
    progress: Progress,
) -> None:
    from ray import tune

    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would take Ctrl-C for the end of the search; the trials are to stay as they are.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # What went wrong with a trial is in its record, in one line.
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as state:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": DRIVER_CPUS}),
            param_space=space,
            tune_config=tune.TuneConfig(**options),
            run_config=tune.RunConfig(
                name=SearchFolder(place.search).search_id,
                storage_path=state,
                verbose=0,
                callbacks=[_watcher(place, kind, progress)],
            ),
        )
        tuner.fit()


def drive(make: Callable[[], RunSpec], place: Place, record: TrialRecord, objectives: tuple[str, ...]) -> None:
    """What the process of a trial does. Whatever ends it badly is in its record; the search goes on."""
    from ray import tune

    check_newest(place.search, place.attempt)
    try:
        spec = make()
        record = dataclasses.replace(record, run_id=_run_id(spec, place.corpus))
        if ended := ended_twin(place, record):
            told = {name: getattr(ended, name) for name in ("state", "step", "progress", "objectives", "loss")}
            record = dataclasses.replace(record, **told)
        run_trial(spec, place.corpus, place.search, record, objectives, tune.report)
    except Exception as error:
        # Where there is no trial any more Ray Tune has stopped it, and what it lost with that is no failure. Nor is it
        # one where a newer attempt at the search has taken the run from a trial that outlived its killed driver.
        if tune.get_context().get_trial_id() is not None and place.is_ours():
            write_record(place.search, dataclasses.replace(record, state="failed", error=one_line(error)))
        raise


def ended_twin(place: Place, record: TrialRecord) -> TrialRecord | None:
    """The record of a trial that is the same run and has ended, in this attempt or before. Where the same was drawn
    twice one trial trains it and the others wait. Raises UserError where it failed."""
    twins = [each for each in read_records(place.search) if each.run_id == record.run_id]
    if ended := [each for each in twins if each.state in ENDED]:
        return ended[0]
    # Before the claim, or whoever loses it might read how the winner ended in an earlier attempt.
    write_record(place.search, record)
    claim = SearchFolder(place.search).claim(place.attempt, record.run_id)
    facts = {"trial": record.name, "number": uuid.uuid4().hex}
    if storage.create_json(claim, facts):
        return None
    owner = storage.read_json(claim)["trial"]
    while True:
        (twin,) = (each for each in read_records(place.search) if each.name == owner)
        if twin.state in ENDED:
            return twin
        if twin.state == "failed":
            raise UserError(record.name, f"is the same run as {owner}, which failed")
        time.sleep(TWIN_SECONDS)


def _watcher(place: Place, kind: str, progress: Progress) -> Any:
    """Ray Tune's callback: shows what trials tell, and notes which were stopped or lost."""
    from ray import tune

    def record_of(trial: Any) -> TrialRecord | None:
        number = trial.config.get("number", trial.config.get("depth"))
        return next((each for each in read_records(place.search) if (each.kind, each.number) == (kind, number)), None)

    def ended(trial: Any, state: Any, error: str = "") -> None:
        record = record_of(trial)
        if record and record.state == "running" and place.is_ours():
            record = dataclasses.replace(record, state=state, error=error)
            record = with_report(record, trial.last_result) if "loss" in trial.last_result else record
            write_record(place.search, record)
        if record:
            progress.see(record)

    class Watcher(tune.Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Report, **info: Any) -> None:  # noqa: ARG002
            record = record_of(trial)
            if record and record.state == "running" and "loss" in result:
                progress.see(with_report(record, result))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
            ended(trial, "stopped")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # noqa: ARG002
            ended(trial, "failed", "its process was lost")

    return Watcher()
