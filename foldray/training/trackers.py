"""Adapters to TensorBoard, MLflow and W&B: each starts a run, writes points and ends the run."""

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from foldray import storage
from foldray.config.spec import RunSpec
from foldray.errors import UserError, one_line
from foldray.runtime.extras import check_extra
from foldray.storage.layout import Run

FLUSH_SECONDS = 10
RUN_TAG = "foldray.run_id"
MOST_METRICS, MOST_PARAMS = 1000, 100  # MLflow's limits for one request

MODULES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}

# No telemetry to third parties. By default W&B captures the terminal, progress bar included, and waits without limit
# for a server that is away, and MLflow logs each table that it creates.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_FINISH_TIMEOUT": "25",  # less than tracking.LAST_SECONDS
}


class Point(NamedTuple):
    """Scalars of one record by tag, with its step and arrival time (seconds since 1970)."""

    step: int
    when: float
    scalars: dict[str, float]


class Tracker(NamedTuple):
    """A started run of a tracking service."""

    write: Callable[[list[Point]], None]
    close: Callable[[bool], None]  # receives whether the run ended well


class TrackedRun(NamedTuple):
    """A run for trackers; `first_step` is the first step of this attempt."""

    spec: RunSpec
    run_id: str
    uri: str
    first_step: int


def check_trackers(spec: RunSpec) -> None:
    """Raise UserError if a tracker is not installed or has no key."""
    for name in spec.tracking:
        check_extra(name, *MODULES[name], where="tracking", what=name)
    if "wandb" in spec.tracking:
        _check_wandb_key()


def set_defaults() -> None:
    """Set the environment variables of DEFAULTS that are not set."""
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)


def _start_tensorboard(run: TrackedRun) -> Tracker:
    """Write event files into the run's folder, or below the working folder if the run is in a bucket."""
    from torch.utils.tensorboard import SummaryWriter

    local = storage.is_local(run.uri)
    folder = Path(storage.absolute(Run(run.uri).tensorboard)) if local else Path("foldray-tensorboard", run.run_id)
    # The purge hides steps of a lost attempt that are repeated now.
    writer = SummaryWriter(str(folder), purge_step=run.first_step, flush_secs=FLUSH_SECONDS)
    as_code = textwrap.indent(run.spec.model_dump_json(indent=1), "    ")
    writer.add_text("spec", as_code, run.first_step)

    def write(points: list[Point]) -> None:
        for point in points:
            for tag, value in point.scalars.items():
                writer.add_scalar(tag, value, point.step, point.when)

    return Tracker(write, lambda ended_well: writer.close())


def _start_mlflow(run: TrackedRun) -> Tracker:
    """Start or resume a run, found by its tag, in the experiment with the spec's name."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()
    experiment = client.get_experiment_by_name(run.spec.name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(run.spec.name)
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.run_id}'", max_results=1)
    tags = {RUN_TAG: run.run_id}
    tracked = found[0] if found else client.create_run(experiment_id, tags=tags, run_name=run.run_id)
    mlflow_id = tracked.info.run_id
    client.update_run(mlflow_id, "RUNNING")
    # MLflow can neither change a parameter nor delete a point. Repeated steps have equal values: they are skipped.
    fields = _fields(run.spec.model_dump(mode="json"))
    params = [Param(name, text) for name, text in fields.items() if name not in tracked.data.params]
    for i in range(0, len(params), MOST_PARAMS):
        client.log_batch(mlflow_id, params=params[i : i + MOST_PARAMS])
    known = {
        (tag, metric.step)
        for tag in tracked.data.metrics
        for metric in client.get_metric_history(mlflow_id, tag)
        if metric.step >= run.first_step or tag.startswith("valid/")
    }

    def write(points: list[Point]) -> None:
        metrics = [
            Metric(tag, value, int(point.when * 1000), point.step)
            for point in points
            for tag, value in point.scalars.items()
            if (tag, point.step) not in known
        ]
        for i in range(0, len(metrics), MOST_METRICS):
            client.log_batch(mlflow_id, metrics=metrics[i : i + MOST_METRICS])

    return Tracker(write, lambda ended_well: client.set_terminated(mlflow_id, "FINISHED" if ended_well else "FAILED"))


def _fields(values: dict[str, object], prefix: str = "") -> dict[str, str]:
    """Return the fields of a spec by their full names, such as `optim.lr`, as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= _fields(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return found


def _start_wandb(run: TrackedRun) -> Tracker:
    """Start or resume the W&B run with this run's id."""
    import wandb

    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "foldray"),
        id=run.run_id,
        name=run.run_id,
        resume="allow",
        reinit="create_new",  # leaves alone a run that the caller has open in this process
        config=run.spec.model_dump(mode="json"),
        allow_val_change=True,  # a resumed run may have other values, such as the number of workers
    )
    # W&B's own step only rises, but a validation arrives after later steps.
    tracked.define_metric("step")
    for group in ("train", "valid", "speed"):
        tracked.define_metric(f"{group}/*", step_metric="step")

    def write(points: list[Point]) -> None:
        for point in points:
            tracked.log({"step": point.step, **point.scalars})

    return Tracker(write, lambda ended_well: tracked.finish(exit_code=0 if ended_well else 1))


def _check_wandb_key() -> None:
    """Raise UserError without a key; W&B would prompt for one in the middle of training."""
    set_defaults()
    import wandb

    fix = "run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise UserError("tracking", f"wandb refuses its key ({one_line(error)}); {fix}") from None
    if not has_key:
        raise UserError("tracking", f"wandb has no key; {fix}")


STARTS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _start_tensorboard,
    "mlflow": _start_mlflow,
    "wandb": _start_wandb,
}
