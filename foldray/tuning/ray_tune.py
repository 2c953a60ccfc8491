"""Trials under Ray Tune: Optuna suggests them, ASHA stops them early, a callback follows them.

Import this module after `start_ray`, which sets the environment that Ray reads when it is imported.
"""

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from foldray.config.search import SearchSpec
from foldray.config.spec import RunSpec
from foldray.results.searches import State, TrialRecord, read_records, write_record
from foldray.storage.layout import SearchFolder
from foldray.tuning.progress import Progress
from foldray.tuning.space import Config, baseline_spec, overrides_of, points_left, sampler_of, suggest, trial_spec
from foldray.tuning.trial_process import DRIVER_CPUS, SearchAttempt, run_trial_process
from foldray.tuning.trials import TrialReport

if TYPE_CHECKING:
    import optuna


def run_trials(base: RunSpec, started: SearchAttempt, known: list[TrialRecord], progress: Progress) -> None:
    """Run the trials of the search space; `known`: the records of earlier attempts, which are replayed first."""
    search = base.search
    assert search
    before = [record.config for record in known if record.kind == "trial"]

    def trial(config: Config) -> None:
        drawn = {name: value for name, value in config.items() if name != "number"}
        record = TrialRecord(config["number"], "trial", "", drawn, overrides_of(search, drawn))
        run_trial_process(lambda: trial_spec(base, drawn), started, record, search.objectives)

    options = {
        "search_alg": ConcurrencyLimiter(_sampler(search, before), max_concurrent=search.concurrent),
        "scheduler": _scheduler(search),
        "num_samples": search.trials,
    }
    _fit(trial, {}, options, _Watcher(started, "trial", progress))


def _sampler(search: SearchSpec, before: list[Config]) -> OptunaSearch:
    """Optuna, which first suggests the points of earlier attempts and of the grids."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    several = len(search.objectives) > 1
    return OptunaSearch(
        partial(_suggest, search),
        metric=list(search.objectives) if several else search.objectives[0],
        mode=["min"] * len(search.objectives) if several else "min",
        points_to_evaluate=[*before, *points_left(search, before)] or None,
        sampler=sampler_of(search),
    )


def _suggest(search: SearchSpec, trial: "optuna.Trial") -> Config:
    """Draw a trial's fields, which Ray Tune reads from the Optuna trial itself, and return its number."""
    suggest(search, trial)
    return {"number": trial.number}


def _scheduler(search: SearchSpec) -> TrialScheduler | None:
    if not search.asha:
        return None
    asha: Any = ASHAScheduler  # its types ask for whole numbers; shares of a run work as well
    scheduler: TrialScheduler = asha(
        time_attr="progress",
        metric="loss",
        mode="min",
        # The last rung lies before the end: what is trained is scored.
        max_t=0.999,
        grace_period=search.asha.grace,
        reduction_factor=search.asha.reduction,
        stop_last_trials=False,
    )
    return scheduler


def run_baselines(spec: RunSpec, started: SearchAttempt, progress: Progress) -> None:
    """Run the baselines: models of one depth each, trained as long as a trial."""
    search = spec.search
    if not search or not search.baselines:
        return

    def trial(config: Config) -> None:
        depth = config["depth"]
        overrides = [f"fold.num_layers={depth}", f"fold.depths=[{depth}]"]
        record = TrialRecord(depth, "baseline", "", {"depth": depth}, overrides)
        # Baselines are not ranked, and objectives of other depths do not apply to them.
        run_trial_process(lambda: baseline_spec(spec, depth), started, record, ("wer",))

    space = {"depth": tune.grid_search(list(search.baselines))}
    options = {"max_concurrent_trials": search.concurrent}
    _fit(trial, space, options, _Watcher(started, "baseline", progress))


def _fit(trial: Callable[[Config], None], space: Config, options: dict[str, Any], watcher: "_Watcher") -> None:
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune would end the search at Ctrl-C; the trials must stay resumable.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # The record of a failed trial has the error in one line.
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as state:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": DRIVER_CPUS}),
            param_space=space,
            tune_config=tune.TuneConfig(**options),
            run_config=tune.RunConfig(
                name=SearchFolder(watcher.started.search).search_id,
                storage_path=state,
                verbose=0,
                callbacks=[watcher],
            ),
        )
        tuner.fit()


class _Watcher(tune.Callback):
    """Shows what trials report, and records which were stopped or lost."""

    def __init__(self, started: SearchAttempt, kind: str, progress: Progress) -> None:
        self.started = started
        self._kind = kind
        self._progress = progress

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Trial],  # noqa: ARG002
        trial: Trial,
        result: dict[str, Any],
        **info: object,  # noqa: ARG002
    ) -> None:
        record = self._record_of(trial)
        report = TrialReport.of_result(result)
        if record and record.state == "running" and report:
            self._progress.update(report.added_to(record))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:  # noqa: ARG002
        self._end(trial, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:  # noqa: ARG002
        self._end(trial, "failed", "its process was lost")

    def _end(self, trial: Trial, state: State, error: str = "") -> None:
        """Write how a trial ended that could not write it itself."""
        record = self._record_of(trial)
        if record and record.state == "running" and self.started.is_newest():
            report = TrialReport.of_result(trial.last_result)
            record = report.added_to(record) if report else record
            record = dataclasses.replace(record, state=state, error=error)
            write_record(self.started.search, record)
        if record:
            self._progress.update(record)

    def _record_of(self, trial: Trial) -> TrialRecord | None:
        number = trial.config.get("number", trial.config.get("depth"))
        records = read_records(self.started.search)
        return next((each for each in records if (each.kind, each.number) == (self._kind, number)), None)
