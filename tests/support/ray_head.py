"""A Ray head on loopback whose processes can be distinguished from those of any other Ray on the machine.

`pytest_plugins = ["tests.support.ray_head", "tests.support.s3_server"]` gives a test module the fixture `ray_head`.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from foldray.runtime.ray import TRIES
from tests.support.hosts import WITH_TESTS, wait_until
from tests.support.ports import free_ports
from tests.support.s3_server import S3Server

__all__ = ["HASTE", "LEAN", "RAY", "RayHead", "ray_head", "running_head", "start_node"]

LEAN = {
    # No workers before anybody asks for them; one that has imported torch serves one validation after the other.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}
"""A node of Ray that takes fewer CPU seconds to start: tests are bound by them."""
HASTE = {
    **LEAN,

    # A host that does not answer is dead after some 7 seconds, not 15.
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
    # Workers that are asked for where a host is dead already are asked for anew after that long.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}  # fmt: skip
RAY = str(Path(sys.executable).with_name("ray"))


def start_node(begin: Callable[..., "subprocess.Popen[str]"], log: Path) -> "subprocess.Popen[str]":
    """`ray start --block`: return the process once Ray runs; raise with its log if it does not.

    Ray itself gives it 30 seconds, which a busy machine exceeds now and then: hence more than one try.
    """
    said = ""
    for _ in range(TRIES):
        with log.open("w") as file:
            process = begin(stdout=file, stderr=file)
        runs = lambda: "Ray runtime started" in log.read_text()  # noqa: E731
        wait_until(lambda: runs() or process.poll() is not None, f"Ray ({log})")  # noqa: B023
        if process.poll() is None:
            return process
        said += log.read_text()
    raise AssertionError(f"no Ray: {said}")


class RayHead:
    """`ray start --head --block` in a process group of its own. `address` is for RAY_ADDRESS, `dashboard` a URL."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # short: it holds sockets
        port, dashboard, agent, client = free_ports(4)
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self._environment = {**LEAN, **environment}
        self._command = [
            *WITH_TESTS, RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
            "--num-cpus=3", "--object-store-memory=200000000", f"--temp-dir={self.temporary}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}",
            # Any free ones: heads side by side would take the same from the range that is meant for firewalls.
            "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats", "--include-log-monitor=false",
        ]  # fmt: skip

    def start(self) -> None:
        """Start the head and wait until it runs; raise with its log if it does not."""
        begin = partial(subprocess.Popen, self._command, env=self._environment, text=True, start_new_session=True)
        start_node(begin, self.temporary / "head.log")

    def processes(self) -> dict[int, str]:
        """Command lines of all processes that have a file of this head open: daemons, workers, drivers."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                files = [os.readlink(file) for file in (entry / "fd").iterdir()]
                if any(file.startswith(str(self.temporary)) for file in files):
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:  # it ended meanwhile
                continue
        return found

    def close(self) -> None:
        """Kill the head's processes by id: `ray stop` would end every Ray on the machine."""
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="session")
def running_head(s3_server: S3Server) -> Iterator[RayHead]:
    """The session's head. A Ray for each costs 25 s of a core. Its workers have the keys of the session's S3 server."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    head = RayHead({**plain, **s3_server.environment, "RAY_AUTH_MODE": "disabled"})
    try:
        head.start()
        yield head
    finally:
        head.close()


@pytest.fixture(scope="session")
def ray_head(running_head: RayHead) -> dict[str, str]:
    """The session's head, as the environment of commands that join it.

    Not for searches: beside another head one waited here for a CPU for 400 s. By its source, Ray Train frees a stopped
    trial's CPUs only where it finds its cluster among all of the machine (ray.train.v2, placement_group_cleaner.py).
    """
    return {"RAY_ADDRESS": running_head.address, "RAY_AUTH_MODE": "disabled"}
