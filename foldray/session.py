"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import warnings
from typing import Any


def start_ray(min_cpus: int = 1) -> Any:
    """The `ray` module, initialised: the cluster of RAY_ADDRESS or of this job, else a local one.

    A local one offers at least `min_cpus`, so that a small machine runs a recipe's workers in turns
    rather than waiting for cores it does not have.
    """
    # Ray reads this when it is imported: newest train API, and no notes about its own future.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    warnings.filterwarnings("ignore", module="ray")
    if not ray.is_initialized():
        local = "RAY_ADDRESS" not in os.environ
        ray.init(
            num_cpus=max(os.cpu_count() or 1, min_cpus) if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    quiet = ray.data.DataContext.get_current()
    quiet.enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray
