"""Searches of a store: `searches/<search id>/search.json`, and a file for each trial."""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from foldray import storage
from foldray.errors import DamagedFileError, UserError, one_line
from foldray.storage.layout import SearchFolder, Store
from foldray.storage.records import read_as

State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    `config` is the sampled configuration, `overrides` the same as fields of the recipe. `objectives` are those of its
    newest validation. The state "stopped" means early stopping by ASHA.
    """

    number: int
    kind: Literal["trial", "baseline", "start"]
    run_id: str
    config: dict[str, Any]
    overrides: list[str]
    state: State = "running"
    step: int = 0
    progress: float = 0.0
    objectives: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        return "start" if self.kind == "start" else f"{self.kind}-{self.number:04d}"


def write_record(search: str, record: TrialRecord) -> None:
    """Write a trial's record in place of the one before."""
    storage.write_json(SearchFolder(search).trial(record.name), asdict(record))


def read_records(search: str) -> list[TrialRecord]:
    """Read all trials, sorted by kind and number."""
    folder = SearchFolder(search).trials
    records = [_record(storage.join(folder, name)) for name in storage.list_files(folder)]
    return sorted(records, key=lambda record: (KINDS.index(record.kind), record.number))


KINDS = ("start", "trial", "baseline")


def _record(file: str) -> TrialRecord:
    """Read a record; unknown fields are ignored."""
    with _naming(file):
        record = read_as(TrialRecord, file)
        if not storage.is_plain(record.run_id):
            raise ValueError(f"run_id: {record.run_id!r} is not the id of a run")
        return record


@contextmanager
def _naming(file: str) -> Iterator[None]:
    try:
        yield
    except DamagedFileError as error:
        problem = error.problem
    except (ValueError, TypeError, KeyError) as error:
        problem = f"is damaged ({one_line(error)})"
    else:
        return
    raise UserError(file, f"{problem}; remove the search's folder to read the others")


@dataclass(frozen=True)
class _Asked:
    objectives: tuple[str, ...]
    space: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Spec:
    search: _Asked


@dataclass(frozen=True)
class _Described:
    """What results need of `search.json`."""

    spec: _Spec


@dataclass(frozen=True)
class Search:
    """A search with all its trials."""

    search_id: str
    objectives: tuple[str, ...]
    space: dict[str, dict[str, Any]]
    trials: list[TrialRecord]


def read_searches(store: str) -> list[Search]:
    """Read the searches of a store, sorted by id."""
    found = []
    for search_id in storage.list_folders(Store(store).searches):
        folder = Store(store).search(search_id)
        file = folder.description
        if not storage.exists(file):  # not a search of foldray
            continue
        with _naming(file):
            asked = read_as(_Described, file).spec.search
        found.append(Search(search_id, asked.objectives, asked.space, read_records(folder.uri)))
    return found


def figure(objective: str, value: float | None) -> str:
    """Format the value of an objective."""
    if value is None:
        return ""
    if objective.startswith(("wer", "cer")):
        return f"{value:.1%}"
    return f"{value / 1e6:,.2f} M" if value >= 1e5 else f"{value:.3f}"


def importances(search: Search, objective: str) -> dict[str, float]:
    """Importance of each field for an objective (PED-ANOVA, arXiv 2304.10255), largest first.

    Computed from finished trials and the fields that all of them have. Empty for fewer than four such trials, or if
    their objectives do not differ.
    """
    done = [trial for trial in search.trials if trial.kind == "trial" and trial.state == "finished"]
    done = [trial for trial in done if math.isfinite(trial.objectives.get(objective, math.nan))]
    if len(done) < 4 or len({trial.objectives[objective] for trial in done}) < 2:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for trial in done:
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.config,
                distributions={name: _distribution(search.space[name]) for name in trial.config},
                value=trial.objectives[objective],
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(domain: dict[str, Any]) -> Any:
    from optuna import distributions

    if values := domain.get("choice") or domain.get("grid"):
        return distributions.CategoricalDistribution([json.dumps(value) for value in values])
    if domain.get("integer"):
        return distributions.IntDistribution(*domain["integer"])
    log = domain.get("uniform") is None
    low, high = domain["loguniform"] if log else domain["uniform"]
    return distributions.FloatDistribution(low, high, log=log)
