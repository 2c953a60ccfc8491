"""Running the sides of a benchmark in processes of their own, each with its time and its peak memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import TypeAlias, TypedDict

from foldray.runtime.extras import check_extra

SAMPLING_SECONDS = 0.5

Figures: TypeAlias = dict[str, float]
"""Measured values by name; bytes and counts are whole numbers."""


class BenchmarkResult(TypedDict):
    """What a benchmark measured.

    ours, peer: Values of both sides, by name. ratio: Their ratios. shape: The size and kind of the work.
    """

    name: str
    ours: Figures | dict[str, Figures]
    peer: Figures | dict[str, Figures]
    ratio: Figures
    shape: str


def check_extras(*modules: str) -> None:
    """Raise UserError if a module that a peer needs is not installed."""
    for module in modules:
        check_extra("bench", module, where=module, what="this benchmark")


def hold_to_core(number: int, thread: int = 0) -> None:
    """Pin a thread (0: this one, and what it starts) to one core; on Linux only."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(thread, {cores[number % len(cores)]})


def run_process(module: str, *arguments: str) -> Figures:
    """Run `python -m module arguments`, and return the JSON object that it printed as its last line."""
    command = [sys.executable, "-m", module, *arguments]
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    values: Figures = json.loads(completed.stdout.splitlines()[-1])
    return values


def run_side(module: str, *arguments: str) -> Figures:
    """`run_process`, with `peak_bytes` of the process and its children."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=out)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of_tree(process.pid))
            time.sleep(SAMPLING_SECONDS)
        out.seek(0)
        printed = out.read()
    if process.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {process.returncode}: {printed[-500:]}")
    return {**json.loads(printed.splitlines()[-1]), "peak_bytes": peak}


def memory_of_tree(pid: int | None = None) -> int:
    """Proportional memory in bytes of a process (this one by default) and its descendants: shared pages count once."""
    import psutil

    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
