"""Join a Ray cluster, or start one on this machine."""

import contextlib
import logging
import math
import os
import re
import socket
import time
import traceback
import warnings
from types import ModuleType

from foldray.errors import UserError, one_line
from foldray.storage import explain_disk, scrubbed

TRIES = 3
"""Attempts to start a local Ray."""
CONNECT_SECONDS = 5.0
"""How long to wait for the cluster at RAY_ADDRESS to listen. Ray itself retries silently for minutes."""


def start_ray(min_cpus: float = 1, *, state_api: bool = False) -> ModuleType:
    """Connect to the cluster at RAY_ADDRESS (set in Ray jobs), or start Ray on this machine.

    Args:
        min_cpus: Logical CPUs that a local Ray has at least, so that a small machine time-shares a recipe's workers
            instead of waiting for cores that it does not have.
        state_api: Whether a local Ray has the state API, which needs the dashboard (on loopback). Ray Train queries
            it before it frees the resources of a training whose driver is gone.

    Returns:
        The initialised `ray` module.

    Raises:
        UserError: The cluster does not answer or refuses the connection, or Ray does not start here.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # only silences a warning
    # Trials and data tasks request fractions of a CPU on purpose; Ray warns that this starts many processes.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started on node")
    import ray

    warnings.filterwarnings("ignore", module="ray")
    if not ray.is_initialized():
        quiet: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address := os.environ.get("RAY_ADDRESS"):
            _connect(ray, address, quiet)
        else:
            cpus = max(os.cpu_count() or 1, math.ceil(min_cpus))
            _start(ray, {"num_cpus": cpus, "include_dashboard": state_api, **quiet})
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def node_resources(ray: ModuleType) -> list[dict[str, float]]:
    """The logical resources of every live node, such as CPU and GPU, used by others or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def owns_ray() -> bool:
    """Return whether this process started the Ray that it uses, which then ends with it."""
    return _owned


_owned = False

ALONE = {
    # A machine of our own is never drained, and an actor takes 1.3 CPU seconds to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_prestart_worker_first_driver": "0",
    # A process that has imported torch serves one validation after the other.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}
"""Settings of a Ray that this process starts for itself; the environment overrides them."""


def _start(ray: ModuleType, options: dict[str, object]) -> None:
    """Start a local Ray. Its limit of 30 seconds for a node is sometimes too short on two busy cores, so retry.

    Raises UserError after the last attempt.
    """
    global _owned
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    for tries_left in reversed(range(TRIES)):
        try:
            # Without "local" Ray connects to the cluster that was started last on this machine.
            ray.init(address="local", **options)
            _owned = True
            return
        except Exception as error:
            end_half_started(error)
            ray.shutdown()
            if not tries_left:
                fix = "fix that, wait until this machine is less busy, or connect to a cluster with RAY_ADDRESS"
                raise UserError("Ray", f"does not start here ({one_line(error)}); {fix}") from error


def find_user_error(error: BaseException) -> BaseException:
    """Return the UserError that a task or a worker of Ray Train raised, or one for a disk's error; else `error`."""
    for failure in getattr(error, "worker_failures", {}).values():
        if isinstance(failure, UserError):
            return failure
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return UserError(cause.where, cause.problem)
        if type(cause).__name__ == "OutOfDiskError":
            return UserError("Ray", "the disk of its object store is full; free some space under /tmp/ray")
        cause = getattr(cause, "cause", None) or cause.__cause__
    return explain_disk(error) or error


def end_half_started(error: Exception) -> None:
    """End the processes of a Ray node that failed to start; `ray.shutdown()` does not know them.

    If one came up late, two Rays would run on this machine. Ray's state API then finds neither, and a search may wait
    for the CPUs of a trial that was stopped.
    """
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            with contextlib.suppress(Exception):  # it may have failed before it started any
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _connect(ray: ModuleType, address: str, quiet: dict[str, object]) -> None:
    shown = scrubbed(address)
    try:
        _wait_for_port(address)
    except OSError as error:
        fix = "start one (`ray start --head`), or unset RAY_ADDRESS to use this machine alone"
        problem = f"no Ray cluster answers at {shown} ({one_line(error)}); {fix}"
        raise UserError("RAY_ADDRESS", problem) from error
    try:
        ray.init(**quiet)
    except Exception as error:
        reason = scrubbed(one_line(error.__cause__ or error))
        fix = "give this process the cluster's versions of Ray and Python, and its token"
        raise UserError("RAY_ADDRESS", f"the cluster at {shown} refuses the connection ({reason}); {fix}") from error


def _wait_for_port(address: str) -> None:
    """Wait until a TCP address listens. Raises OSError after CONNECT_SECONDS."""
    match = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    until = time.monotonic() + CONNECT_SECONDS
    while match:
        try:
            socket.create_connection((match[1], int(match[2])), timeout=CONNECT_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
