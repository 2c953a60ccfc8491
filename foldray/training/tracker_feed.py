"""Feeds metrics to the trackers of a run (TensorBoard, MLflow, W&B), each in a thread of its own.

Neither training nor another tracker waits for a server. A tracker that fails gets no more metrics, and training goes
on: the store has every metric.
"""

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from foldray.config.spec import RunSpec
from foldray.errors import one_line
from foldray.results.metrics import Record
from foldray.training.trackers import STARTS, Point, TrackedRun, set_defaults

LAST_SECONDS = 30.0
"""How long the end of a run waits for trackers that still send."""

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
def feed_trackers(spec: RunSpec, run_id: str, run: str, first_step: int) -> Iterator[Callable[[Record], None]]:
    """Yield a function that passes a record to the trackers of `spec.tracking` without waiting for them.

    Args:
        spec: The run's spec.
        run_id: Its id, also the trackers' name of the run.
        run: Its URI.
        first_step: First step of this attempt. What a tracker has of this and later steps came from an attempt whose
            weights were lost.

    A tracker that fails is named once in a warning. The end waits LAST_SECONDS for all of them.
    """
    started = TrackedRun(spec, run_id, run, first_step)
    given_up = threading.Event()  # the end has stopped waiting, with a warning
    inboxes: dict[str, _Inbox] = {name: queue.SimpleQueue() for name in spec.tracking}
    threads = {
        name: threading.Thread(
            target=_feed, args=(name, started, inbox, given_up), name=f"tracking-{name}", daemon=True
        )
        for name, inbox in inboxes.items()
    }
    for thread in threads.values():
        thread.start()

    seen = _SeenRecords()

    def pass_on(record: Record) -> None:
        if not seen.add(record):
            return
        point = Point(record["step"], time.time(), scalars(record))
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
        _join(threads, given_up)


def _join(threads: dict[str, threading.Thread], given_up: threading.Event) -> None:
    """Wait for all trackers together; name those that are not done."""
    gives_up = time.monotonic() + LAST_SECONDS
    for name, thread in threads.items():
        thread.join(max(0.0, gives_up - time.monotonic()))
        if thread.is_alive():
            given_up.set()
            _log.warning("tracking: %s was not done after %g s; the store has every metric", name, LAST_SECONDS)


class _SeenRecords:
    """The steps and validations so far. After a lost worker Ray restarts from a checkpoint, and steps are repeated."""

    def __init__(self) -> None:
        self._newest = 0
        self._validated: set[int] = set()

    def add(self, record: Record) -> bool:
        """Return whether a record is new."""
        step: int = record["step"]
        if _is_validation(record):
            new = step not in self._validated
            self._validated.add(step)
        else:
            new = step > self._newest
            self._newest = max(self._newest, step)
        return new


def _is_validation(record: Record) -> bool:
    return all(key.startswith("valid_") for key in record if key != "step")


def scalars(record: Record) -> dict[str, float]:
    """Return a record's numbers by tag, such as `train/ctc/depth_3`, `valid/wer/depth_6`, `speed/padding_share`."""
    found: dict[str, object] = {}
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
    """Start a tracker and write incoming points until the run ends or the tracker fails."""
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
    """Wait for a point; return all that are queued, and whether the run ended well (None: it has not ended)."""
    points: list[Point] = []
    while not points or not inbox.empty():
        item = inbox.get()
        if isinstance(item, bool):
            return points, item
        points.append(item)
    return points, None
