"""Metrics passed on to TensorBoard, MLflow and W&B. The store stays the record: a tracker that fails only falls silent.

Each tracker has a thread of its own, so that neither training nor another tracker waits for a server.
"""

import json
import logging
import os
import queue
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.extras import check_extra
from foldray.results.metrics import Record
from foldray.spec import RunSpec

LAST_SECONDS = 30.0
"""How long the end of a run waits for trackers that are still sending."""

FLUSH_SECONDS = 10
RUN_TAG = "foldray.run_id"
MOST_METRICS, MOST_PARAMS = 1000, 100  # what MLflow takes in one request

MODULES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
SPEEDS = {
    "seconds": "seconds_per_step",
    "checkpoint_seconds": "checkpoint_seconds",
    "validation_wait": "validation_wait_seconds",
    "padding": "padding_share",
    "memory": "memory_bytes",
}
DERIVED = ("step", "audio_seconds", "data_wait")

# Neither reports to anyone but the server that was asked for. W&B would put itself between the terminal and the
# progress bar and wait without end for a server that is away; MLflow would announce each table it makes.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_FINISH_TIMEOUT": "25",  # less than LAST_SECONDS
}

_log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One record's scalars by tag, and when it came, in seconds since 1970."""

    step: int
    when: float
    scalars: dict[str, float]


class _Tracker(NamedTuple):
    write: Callable[[list[Point]], None]
    close: Callable[[bool], None]  # is told whether the run ended well


@dataclass(frozen=True)
class _Run:
    spec: RunSpec
    run_id: str
    uri: str
    first_step: int
    given_up: threading.Event  # the end has waited long enough, and said so


_Inbox = queue.SimpleQueue[Point | bool]


def check_trackers(spec: RunSpec) -> None:
    """Refuse trackers that are not installed or have no key. Raises UserError."""
    for name in spec.tracking:
        check_extra(name, *MODULES[name], where="tracking", what=name)
    if "wandb" in spec.tracking:
        _check_wandb_key()


@contextmanager
def tracking(spec: RunSpec, run_id: str, run: str, first_step: int) -> Iterator[Callable[[Record], None]]:
    """Passes each record on to the trackers that `spec.tracking` names, and never waits for one before the end.

    `first_step` is the first step that this attempt takes; what a tracker has of it or later ones came from an
    attempt whose weights were lost. A tracker that fails is named once in a warning.
    """
    started = _Run(spec, run_id, run, first_step, threading.Event())
    inboxes: dict[str, _Inbox] = {name: queue.SimpleQueue() for name in spec.tracking}
    threads = {
        name: threading.Thread(target=_feed, args=(name, started, inbox), name=f"tracking-{name}", daemon=True)
        for name, inbox in inboxes.items()
    }
    for thread in threads.values():
        thread.start()

    newest, validated = 0, set[int]()

    def pass_on(record: Record) -> None:
        nonlocal newest
        step = record["step"]
        # Ray restarts workers that were lost from a checkpoint: steps come again, with the values they had.
        if step in validated if _is_validation(record) else step <= newest:
            return
        if _is_validation(record):
            validated.add(step)
        else:
            newest = step
        point = Point(step, time.time(), scalars(record))
        for name, inbox in inboxes.items():
            if threads[name].is_alive():
                inbox.put(point)

    ended_well = False
    try:
        yield pass_on
        ended_well = True
    finally:
        for inbox in inboxes.values():
            inbox.put(ended_well)
        gives_up = time.monotonic() + LAST_SECONDS
        for name, thread in threads.items():
            thread.join(max(0.0, gives_up - time.monotonic()))
            if thread.is_alive():
                started.given_up.set()
                _log.warning("tracking: %s was not done after %g s; the store has every metric", name, LAST_SECONDS)


def _is_validation(record: Record) -> bool:
    return all(key.startswith("valid_") for key in record if key != "step")


def scalars(record: Record) -> dict[str, float]:
    """A record's numbers by tag: `train/ctc/depth_3`, `valid/wer/depth_6`, `train/lr`, `speed/padding_share` …"""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if key in DERIVED:
            continue
        tag = f"speed/{SPEEDS[key]}" if key in SPEEDS else f"train/{key}"
        if key.startswith("valid_"):
            tag = f"valid/{key.removeprefix('valid_')}"
        by_depth = isinstance(value, dict)
        found |= {f"{tag}/depth_{depth}": each for depth, each in value.items()} if by_depth else {tag: value}
    if record.get("seconds"):
        if "audio_seconds" in record:
            found["speed/audio_seconds_per_second"] = record["audio_seconds"] / record["seconds"]
        if "data_wait" in record:
            found["speed/data_wait_share"] = record["data_wait"] / record["seconds"]
    return {tag: float(value) for tag, value in found.items() if isinstance(value, int | float)}


def _feed(name: str, run: _Run, inbox: _Inbox) -> None:
    """Start a tracker and write what comes in until the run ends; its first failure is its last."""
    try:
        _set_defaults()
        tracker = STARTS[name](run)
        ended_well = None
        while ended_well is None:
            points, ended_well = _take(inbox)
            if points:
                tracker.write(points)
        tracker.close(ended_well)
    except Exception as error:
        if run.given_up.is_set():
            return
        reason = re.sub(r"//[^/@\s]*@", "//", one_line(error))  # a server's address may hold a password
        _log.warning("tracking: %s gets nothing more (%s); training goes on, the store has every metric", name, reason)


def _set_defaults() -> None:
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)


def _take(inbox: _Inbox) -> tuple[list[Point], bool | None]:
    """All points that wait, and whether the run ended well, None while it goes on. Waits for the first of them."""
    points: list[Point] = []
    while not points or not inbox.empty():
        item = inbox.get()
        if isinstance(item, bool):
            return points, item
        points.append(item)
    return points, None


# --- The trackers ----------------------------------------------------------------------------------


def _start_tensorboard(run: _Run) -> _Tracker:
    """Event files beside the run, or below the working folder where the run is in a bucket."""
    from torch.utils.tensorboard import SummaryWriter

    local = storage.is_local(run.uri)
    folder = Path(storage.absolute(run.uri), "tensorboard") if local else Path("foldray-tensorboard", run.run_id)
    # The purge hides what an attempt that was lost wrote of steps that are taken again.
    writer: Any = SummaryWriter(str(folder), purge_step=run.first_step, flush_secs=FLUSH_SECONDS)
    as_code = textwrap.indent(run.spec.model_dump_json(indent=1), "    ")
    writer.add_text("spec", as_code, run.first_step)

    def write(points: list[Point]) -> None:
        for point in points:
            for tag, value in point.scalars.items():
                writer.add_scalar(tag, value, point.step, point.when)

    return _Tracker(write, lambda ended_well: writer.close())


def _start_mlflow(run: _Run) -> _Tracker:
    """A run of the experiment that is named as the spec, found again by its tag."""
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
    # MLflow changes no parameter once it is there and deletes no point. Steps taken again have the values they had.
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

    return _Tracker(write, lambda ended_well: client.set_terminated(mlflow_id, "FINISHED" if ended_well else "FAILED"))


def _fields(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The fields of a spec by their full names, such as `optim.lr`, as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= _fields(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return found


def _start_wandb(run: _Run) -> _Tracker:
    """A W&B run of the run's own id."""
    import wandb

    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "foldray"),
        id=run.run_id,
        name=run.run_id,
        resume="allow",
        reinit="create_new",  # a run that the caller has open in this process is left alone
        config=run.spec.model_dump(mode="json"),
        allow_val_change=True,  # how many workers there are, for one, may change when a run is resumed
    )
    # W&B's own step only ever rises, but a validation comes later than the steps behind it.
    tracked.define_metric("step")
    for group in ("train", "valid", "speed"):
        tracked.define_metric(f"{group}/*", step_metric="step")

    def write(points: list[Point]) -> None:
        for point in points:
            tracked.log({"step": point.step, **point.scalars})

    return _Tracker(write, lambda ended_well: tracked.finish(exit_code=0 if ended_well else 1))


def _check_wandb_key() -> None:
    """Without a key W&B would ask for one in the middle of training. Raises UserError."""
    _set_defaults()
    import wandb

    mend = "run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.errors.Error as error:
        raise UserError("tracking", f"wandb refuses its key ({one_line(error)}); {mend}") from None
    if not has_key:
        raise UserError("tracking", f"wandb has no key; {mend}")


STARTS: dict[str, Callable[[_Run], _Tracker]] = {
    "tensorboard": _start_tensorboard,
    "mlflow": _start_mlflow,
    "wandb": _start_wandb,
}
