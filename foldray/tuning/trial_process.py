"""The process of one trial under Ray Tune: it trains the trial's run, or waits for another trial that trains it."""

import dataclasses
import time
import uuid
from collections.abc import Callable

from foldray import storage
from foldray.config.spec import RunSpec
from foldray.data.manifest import read_manifest
from foldray.errors import UserError, one_line
from foldray.results.searches import TrialRecord, read_records, write_record
from foldray.storage.layout import SearchFolder
from foldray.storage.records import read_as
from foldray.training.fencing import Attempt, check_newest, newest_attempt
from foldray.tuning.trials import TrialReport, run_trial

DRIVER_CPUS = 0.01
"""Logical CPUs of a trial's own process, which waits for its workers."""
ENDED = ("stopped", "finished")
POLL_SECONDS = 2.0
"""How often a trial checks whether the trial that trains the same run has ended."""


@dataclasses.dataclass(frozen=True)
class SearchAttempt:
    """One start of a search.

    Attributes:
        corpus: URI of the prepared corpus.
        search: URI of the search's folder.
        attempt: The number of this start; a newer one takes the search over.
    """

    corpus: str
    search: str
    attempt: Attempt

    def is_newest(self) -> bool:
        """Whether no newer attempt has taken the search over."""
        return newest_attempt(self.search) == self.attempt


def run_trial_process(
    make_spec: Callable[[], RunSpec], started: SearchAttempt, record: TrialRecord, objectives: tuple[str, ...]
) -> None:
    """Run a trial in the process that Ray Tune started for it. A failure is written to the trial's record."""
    from ray import tune

    check_newest(started.search, started.attempt)
    try:
        spec = make_spec()
        record = dataclasses.replace(record, run_id=run_id_on(spec, started.corpus))
        if twin := ended_twin(started, record):
            result = {name: getattr(twin, name) for name in ("state", "step", "progress", "objectives", "loss")}
            record = dataclasses.replace(record, **result)
        run_trial(spec, started.corpus, started.search, record, objectives, _report)
    except Exception as error:
        # Without a trial id Ray Tune has stopped the trial: errors that follow from that are no failure. Neither are
        # those of a trial that outlived its killed driver, when a newer attempt at the search has taken its run.
        if tune.get_context().get_trial_id() is not None and started.is_newest():
            write_record(started.search, dataclasses.replace(record, state="failed", error=one_line(error)))
        raise


def _report(report: TrialReport) -> None:
    from ray import tune

    tune.report(report.as_result())


def run_id_on(spec: RunSpec, corpus: str) -> str:
    """The run id of a spec on a prepared corpus."""
    manifest = read_manifest(corpus)
    return spec.run_id(manifest.corpus_id, manifest.tokenizer.digest)


def ended_twin(started: SearchAttempt, record: TrialRecord) -> TrialRecord | None:
    """Find a trial with the same run that has ended; None if this trial is the one to train it.

    Where several trials have the same run, one claims it and trains, the others wait for its end.

    Raises:
        UserError: The trial that claimed the run failed.
    """
    twins = [each for each in read_records(started.search) if each.run_id == record.run_id]
    if ended := [each for each in twins if each.state in ENDED]:
        return ended[0]
    # Before the claim: whoever loses the claim reads the winner's record, which must not be of an earlier attempt.
    write_record(started.search, record)
    claim = SearchFolder(started.search).claim(started.attempt, record.run_id)
    if storage.create_json(claim, {"trial": record.name, "number": uuid.uuid4().hex}):
        return None
    return _wait_for(started.search, read_as(dict[str, str], claim).get("trial", ""), record.name)


def _wait_for(search: str, owner: str, waiting: str) -> TrialRecord:
    while True:
        twin = next((each for each in read_records(search) if each.name == owner), None)
        if twin is None:
            raise UserError(search, f"has no record of the trial {owner!r} that claimed this run; move the claim away")
        if twin.state in ENDED:
            return twin
        if twin.state == "failed":
            raise UserError(waiting, f"is the same run as {owner}, which failed")
        time.sleep(POLL_SECONDS)
