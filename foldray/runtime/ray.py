"""Joining a Ray cluster, or starting one on this machine."""

import contextlib
import logging
import math
import os
import re
import socket
import time
import traceback
import warnings
from typing import Any

from foldray.errors import UserError, one_line
from foldray.storage import scrubbed

TRIES = 3
"""How often a Ray of this machine's own is tried."""
KNOCK_SECONDS = 5.0
"""How long a cluster that RAY_ADDRESS names may take to listen; Ray itself would ask for minutes, without a word."""


def start_ray(min_cpus: float = 1, *, state_api: bool = False) -> Any:
    """The `ray` module, initialised: the cluster that RAY_ADDRESS names (jobs have it set), else a local one.

    A local one offers at least `min_cpus`, so that a small machine runs a recipe's workers in turns
    rather than waiting for cores it does not have. state_api: it says what has become of an actor, which takes the
    dashboard (on loopback). Ray Train asks it before it frees the resources of a training whose driver is gone.
    Raises UserError where no cluster answers, or it lets nobody in, or none starts here.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # only silences a note about it
    # Trials and data tasks take slivers of a CPU on purpose; Ray warns of as many processes in the middle of our lines.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started on node")
    import ray

    warnings.filterwarnings("ignore", module="ray")
    if not ray.is_initialized():
        quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address := os.environ.get("RAY_ADDRESS"):
            _join(ray, address, quietly)
        else:
            cpus = max(os.cpu_count() or 1, math.ceil(min_cpus))
            _start(ray, {"num_cpus": cpus, "include_dashboard": state_api, **quietly})
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def _start(ray: Any, options: dict[str, Any]) -> None:
    """Ray gives a node 30 seconds to start; two cores that also do something else take longer now and then.

    Raises UserError where no try comes through.
    """
    for tries_left in reversed(range(TRIES)):
        try:
            # "local", or Ray would join whatever cluster was started last on this machine.
            ray.init(address="local", **options)
            return
        except Exception as error:
            end_half_started(error)
            ray.shutdown()
            if not tries_left:
                mend = "mend that, or wait until this machine has less to do, or join a cluster with RAY_ADDRESS"
                raise UserError("Ray", f"does not start here ({one_line(error)}); {mend}") from error


def end_half_started(error: Exception) -> None:
    """End the processes of a Ray node that failed to start, which `ray.shutdown()` does not know.

    A late one would make two Rays on this machine: Ray's state API then finds none of them, and a search may wait
    for the CPUs of a trial that was stopped.
    """
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            with contextlib.suppress(Exception):  # it may have failed before it had any
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _join(ray: Any, address: str, quietly: dict[str, Any]) -> None:
    shown = scrubbed(address)
    try:
        _knock(address)
    except OSError as error:
        mend = "start one (`ray start --head`), or unset RAY_ADDRESS to use this machine alone"
        problem = f"no Ray cluster answers at {shown} ({one_line(error)}); {mend}"
        raise UserError("RAY_ADDRESS", problem) from error
    try:
        ray.init(**quietly)
    except Exception as error:
        said = scrubbed(one_line(error.__cause__ or error))
        mend = "give this process the cluster's versions of Ray and Python, and its token"
        raise UserError("RAY_ADDRESS", f"the cluster at {shown} can't be joined ({said}); {mend}") from error


def _knock(address: str) -> None:
    """Raises OSError where nothing listens, for as long as a cluster that is just starting may take."""
    place = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    until = time.monotonic() + KNOCK_SECONDS
    while place:
        try:
            socket.create_connection((place[1], int(place[2])), timeout=KNOCK_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
