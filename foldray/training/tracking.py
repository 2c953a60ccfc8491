"""Metrics passed on to TensorBoard, MLflow and W&B. The store stays the record: a tracker that fails only falls silent.

Each tracker has a thread of its own, so that neither training nor another tracker waits for a server.
"""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from foldray.config.spec import RunSpec
from foldray.errors import one_line
from foldray.results.metrics import Record
from foldray.training.trackers import STARTS, Point, TrackedRun, set_defaults

LAST_SECONDS = 30.0
"""How long the end of a run waits for trackers that are still sending."""

SPEEDS = {
    "seconds": "seconds_per_step",
    "checkpoint_seconds": "checkpoint_seconds",
    "validation_wait": "validation_wait_seconds",
    "padding": "padding_share",
    "memory": "memory_bytes",
}
DERIVED = ("step", "audio_seconds", "data_wait")

_log = logging.getLogger(__name__)

_Inbox = queue.SimpleQueue[Point | bool]


@contextmanager
def tracking(spec: RunSpec, run_id: str, run: str, first_step: int) -> Iterator[Callable[[Record], None]]:
    """Passes each record on to the trackers that `spec.tracking` names, and never waits for one before the end.

    `first_step` is the first step that this attempt takes; what a tracker has of it or later ones came from an
    attempt whose weights were lost. A tracker that fails is named once in a warning.
    """
    started = TrackedRun(spec, run_id, run, first_step)
    given_up = threading.Event()  # the end has waited long enough, and said so
    inboxes: dict[str, _Inbox] = {name: queue.SimpleQueue() for name in spec.tracking}
    threads = {
        name: threading.Thread(
            target=_feed, args=(name, started, inbox, given_up), name=f"tracking-{name}", daemon=True
        )
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
                given_up.set()
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


def _feed(name: str, run: TrackedRun, inbox: _Inbox, given_up: threading.Event) -> None:
    """Start a tracker and write what comes in until the run ends; its first failure is its last."""
    try:
        set_defaults()
        tracker = STARTS[name](run)
        ended_well = None
        while ended_well is None:
            points, ended_well = _take(inbox)
            if points:
                tracker.write(points)
        tracker.close(ended_well)
    except Exception as error:
        if given_up.is_set():
            return
        reason = re.sub(r"//[^/@\s]*@", "//", one_line(error))  # a server's address may hold a password
        _log.warning("tracking: %s gets nothing more (%s); training goes on, the store has every metric", name, reason)


def _take(inbox: _Inbox) -> tuple[list[Point], bool | None]:
    """All points that wait, and whether the run ended well, None while it goes on. Waits for the first of them."""
    points: list[Point] = []
    while not points or not inbox.empty():
        item = inbox.get()
        if isinstance(item, bool):
            return points, item
        points.append(item)
    return points, None
