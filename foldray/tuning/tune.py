"""The stage `tune`: start a search or resume it, with everything worth keeping in the store.

Ray Tune's own state is a pickle on the driver and is thrown away. A search resumes from the records and runs of its
trials: the same points are suggested in the same order, finished and stopped trials only replay their reports, and
that restores the state of sampler and scheduler.
"""

import dataclasses
from typing import TypedDict

from pydantic import BaseModel, JsonValue

from foldray import storage
from foldray.config.load import build_spec, override_spec
from foldray.config.model import RUN
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.results.reader import read_rows
from foldray.results.rows import ResultRow
from foldray.results.searches import TrialRecord, read_records, write_record
from foldray.runtime.ray import start_ray
from foldray.runtime.terminal import print_status
from foldray.stages.prepare import prepare_stage
from foldray.stages.train import train_prepared
from foldray.storage.layout import SearchFolder
from foldray.storage.records import read_as
from foldray.training.fencing import check_newest, claim_submission
from foldray.training.trackers import check_trackers
from foldray.training.workers import cpus_needed
from foldray.tuning.progress import show_progress
from foldray.tuning.space import baseline_spec, start_spec
from foldray.tuning.trial_process import DRIVER_CPUS, ENDED, SearchAttempt, run_id_on


class SearchResult(TypedDict):
    """A search that has ended.

    Attributes:
        search_id: The name of its folder.
        search: Its URI.
        trials: The fields of its trials' records, with their names.
        rows: The newest result rows of its runs.
    """

    search_id: str
    search: str
    trials: list[dict[str, object]]
    rows: list[ResultRow]


def tune_stage(spec: RunSpec) -> SearchResult:
    """Run the search that `search` of a spec describes, or resume it.

    Raises:
        UserError: The spec has no search, a trial could not be trained, or no trial succeeded.
    """
    if spec.search is None:
        raise UserError("search", f"{spec.name} has no section `search`; `foldray tune quickstart-search` has one")
    check_trackers(spec)
    # Specs that can't be trained are refused before anything else is done.
    for depth in spec.search.baselines:
        baseline_spec(spec, depth)
    start_spec(spec)
    _start_ray(spec)
    corpus, manifest = prepare_stage(spec)
    search_id = f"{spec.name}-{spec.search_hash(manifest.corpus_id, manifest.tokenizer.digest)}"
    search = spec.store.search(search_id)
    described = {"corpus_id": manifest.corpus_id, "spec": spec.model_dump(mode="json")}
    storage.write_json(search.description, described)
    return _run_search(spec, corpus, search)


def resume_search(search: str) -> SearchResult:
    """Resume a search from its URI alone, STORE/searches/SEARCH_ID; returns the same as `tune_stage`.

    Raises:
        UserError: The URI is not a search.
    """
    folder = SearchFolder(storage.absolute(search))
    store = folder.store
    if store is None or not storage.exists(folder.description):
        raise UserError("RUN_URI", f"{folder.uri} is not a search (STORE/searches/SEARCH_ID with a search.json)")
    described = read_as(SearchFile, folder.description)
    spec = build_spec(described.spec, folder.description).in_store(store)
    return _run_search(spec, store.corpus(described.corpus_id).uri, folder)


class SearchFile(BaseModel):
    """The contents of `search.json`."""

    corpus_id: str
    spec: dict[str, JsonValue]


def _run_search(spec: RunSpec, corpus: str, search: SearchFolder) -> SearchResult:
    assert spec.search
    known = read_records(search.uri)
    done = sum(record.state in ENDED for record in known)
    resumed = f", {done} of them done before" if done else ""
    print_status(f"search    {search.uri}, {spec.search.trials} trials{resumed}")
    _start_ray(spec)
    from foldray.tuning.ray_tune import run_baselines, run_trials

    started = SearchAttempt(corpus, search.uri, claim_submission(search.uri))
    base = _from_start(spec, corpus, search.uri)
    with show_progress(spec.search.objectives) as progress:
        for record in known:
            progress.update(record)
        run_trials(base, started, known, progress)
        run_baselines(spec, started, progress)
    check_newest(search.uri, started.attempt)
    return _summary(search, base.storage.root)


def _summary(search: SearchFolder, store: str) -> SearchResult:
    """The records of a finished search and the result rows of its runs. Raises UserError if no trial succeeded."""
    records = read_records(search.uri)
    if not any(record.state in ENDED for record in records if record.kind == "trial"):
        first = next((record.error for record in records if record.error), "")
        raise UserError("search", f"every trial failed; the first one's error: {first}")
    for record in records:
        if record.state == "failed":
            print_status(f"failed    {record.name} ({' '.join(record.overrides)}): {record.error}")
    run_ids = dict.fromkeys(record.run_id for record in records)
    return {
        "search_id": search.search_id,
        "search": search.uri,
        "trials": [{"name": record.name, **dataclasses.asdict(record)} for record in records],
        "rows": [row for run_id in run_ids for row in read_rows(store, run_id)],
    }


def _start_ray(spec: RunSpec) -> None:
    """Start Ray with its state API, without which stopped trials would keep their workers' resources."""
    assert spec.search
    start_ray(spec.search.concurrent * (cpus_needed(spec) + DRIVER_CPUS), state_api=True)


def _from_start(spec: RunSpec, corpus: str, search: str) -> RunSpec:
    """The spec that trials vary; with `search.start` it begins from the seed of a run that is trained now."""
    assert spec.search
    if not spec.search.start:
        return spec
    start = start_spec(spec)
    run_id = run_id_on(start, corpus)
    record = TrialRecord(0, "start", run_id, dict(spec.search.start), [])
    trained = train_prepared(start, corpus)
    write_record(search, dataclasses.replace(record, state="finished", step=trained["step"], progress=1.0))
    return override_spec(spec, [f"model.checkpoint={RUN}{run_id}"])
