"""The tables `runs` and `trials` of a store, from its JSON files."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from foldray import storage
from foldray.errors import DamagedFileError, one_line
from foldray.results.cache import READERS
from foldray.results.searches import read_searches
from foldray.storage.layout import Run, Store
from foldray.storage.records import check_as, read_as

Row = dict[str, Any]


def runs_table(root: str) -> pa.Table:
    """The table `runs`: a row for each run with its main fields, whether it is finished, and its spec as JSON."""
    store = Store(root)
    runs = [store.run(run_id) for run_id in storage.list_folders(store.runs)]
    with ThreadPoolExecutor(READERS) as pool:
        return pa.Table.from_pylist(list(filter(None, pool.map(_run, runs))), RUNS)


RUNS = pa.schema(
    [("run_id", pa.string()), ("recipe", pa.string()), ("family", pa.string()), ("num_layers", pa.int64()),
     ("depths", pa.list_(pa.int64())), ("order", pa.string()), ("private", pa.string()), ("alpha", pa.float64()),
     ("beta", pa.float64()), ("lr", pa.float64()), ("seed", pa.int64()), ("corpus", pa.string()),
     ("finished", pa.bool_()), ("created", pa.string()), ("git_commit", pa.string()), ("spec", pa.string())]
)  # fmt: skip
"""The columns of `runs`."""


def _run(run: Run) -> Row | None:
    try:
        spec = read_as(dict[str, Any], run.spec)
        facts = read_as(dict[str, Any], run.facts)
    except FileNotFoundError:  # it is only being created
        return None
    # Fields that a spec lacks are null.
    fold, loss, optim, model = (
        check_as(dict[str, Any], spec.get(name) or {}, run.spec) for name in ("fold", "loss", "optim", "model")
    )
    row = {
        "run_id": run.run_id, "recipe": spec.get("name"), "family": model.get("family"),
        "num_layers": fold.get("num_layers"), "depths": fold.get("depths"), "order": fold.get("order"),
        "private": fold.get("private"), "alpha": loss.get("alpha"), "beta": loss.get("beta"), "lr": optim.get("lr"),
        "seed": spec.get("seed"), "corpus": facts.get("corpus_id"),
        "finished": storage.exists(run.model.fold), "created": facts.get("created"),
        "git_commit": facts.get("git_commit"), "spec": json.dumps(spec),
    }  # fmt: skip
    try:
        pa.Table.from_pylist([row], RUNS)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(run.spec, f"is damaged ({one_line(error)}), or run.json beside it is") from None
    return row


def trials_table(root: str) -> pa.Table:
    """The table `trials`: a row for each trial of each search; `objectives` as JSON."""
    rows = [
        {
            "search_id": search.search_id, "trial": trial.name, "kind": trial.kind, "run_id": trial.run_id,
            "state": trial.state, "step": trial.step, "progress": trial.progress, "loss": trial.loss,
            "objectives": json.dumps(trial.objectives), "overrides": trial.overrides, "error": trial.error,
        }
        for search in read_searches(root)
        for trial in search.trials
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, TRIALS)


TRIALS = pa.schema(
    [("search_id", pa.string()), ("trial", pa.string()), ("kind", pa.string()), ("run_id", pa.string()),
     ("state", pa.string()), ("step", pa.int64()), ("progress", pa.float64()), ("loss", pa.float64()),
     ("objectives", pa.string()), ("overrides", pa.list_(pa.string())), ("error", pa.string())]
)  # fmt: skip
"""The columns of `trials`."""
