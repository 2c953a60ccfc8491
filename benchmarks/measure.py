"""Running the sides of a benchmark as processes of their own, each with its time and its peak memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from foldray.runtime.extras import check_extra

SAMPLING_SECONDS = 0.5


def check_extras(*modules: str) -> None:
    """Raises UserError for a peer that is not installed."""
    for module in modules:
        check_extra("bench", module, where=module, what="this benchmark")


def hold_to_core(number: int, thread: int = 0) -> None:
    """Let a thread of this machine (0: this one, and what it starts) run on one core alone; Linux can."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(thread, {cores[number % len(cores)]})


def run_process(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments` printed as JSON on its last line; nothing else runs meanwhile."""
    command = [sys.executable, "-m", module, *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    values: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return values


def run_side(module: str, *arguments: str) -> dict[str, Any]:
    """What `python -m module arguments` printed as JSON on its last line, and `peak_bytes` of it and its children."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=out)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of_tree(process.pid))
            time.sleep(SAMPLING_SECONDS)
        out.seek(0)
        answer = out.read()
    if process.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {process.returncode}: {answer[-500:]}")
    return {**json.loads(answer.splitlines()[-1]), "peak_bytes": peak}


def memory_of_tree(pid: int | None = None) -> int:
    """Proportional memory in bytes of a process (this one by default) and all below it: shared pages count once."""
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
