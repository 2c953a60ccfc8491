"""Joining a Ray cluster, or starting one on this machine."""

import logging
import math
import os
import warnings
from typing import Any


def start_ray(min_cpus: float = 1, *, state_api: bool = False) -> Any:
    """The `ray` module, initialised: the cluster that RAY_ADDRESS names (jobs have it set), else a local one.

    A local one offers at least `min_cpus`, so that a small machine runs a recipe's workers in turns
    rather than waiting for cores it does not have. state_api: it says what has become of an actor, which takes the
    dashboard (on loopback). Ray Train asks it before it frees the resources of a training whose driver is gone.
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
        if "RAY_ADDRESS" in os.environ:
            ray.init(**quietly)
        else:
            # "local", or Ray would join whatever cluster was started last on this machine.
            cpus = max(os.cpu_count() or 1, math.ceil(min_cpus))
            ray.init(address="local", num_cpus=cpus, include_dashboard=state_api, **quietly)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray
