"""A Ray head of its own on loopback, whose processes can be told from those of any other Ray on the machine.

`pytest_plugins = ["tests.ray_head"]` gives a test module the fixture `ray_head`.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import free_ports
from tests.hosts import WITH_TESTS, wait_until

__all__ = ["RAY", "RayHead", "ray_head"]

RAY = str(Path(sys.executable).with_name("ray"))


class RayHead:
    """`ray start --head --block` in a process group of its own. `address` is for RAY_ADDRESS, `dashboard` a URL."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # short: it holds sockets
        port, dashboard, agent, client = free_ports(4)
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self._log = self.temporary / "head.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*WITH_TESTS, RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
                 "--num-cpus=3", "--object-store-memory=200000000", f"--temp-dir={self.temporary}",
                 "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                 f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
                 # Any free ones: heads side by side would take the same from the range that is meant for firewalls.
                 "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"],
                env=dict(environment), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it has started; fails with what it said where it ends before."""
        ended = lambda: self._process.poll() is not None  # noqa: E731
        wait_until(lambda: ended() or "Ray runtime started" in self._log.read_text(), "the head")
        assert not ended(), f"no head: {self._log.read_text()}"

    def processes(self) -> dict[int, str]:
        """Command line of everything that has a file of this head open: its daemons, workers, drivers."""
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
        """End the head and all that is left of it, by process id: `ray stop` would end every Ray on the machine."""
        self._process.kill()
        self._process.wait()
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[dict[str, str]]:
    """The session's head, as the environment of commands that join it. A Ray for each costs 25 s of a core.

    Not for searches: beside another head one waited here for a CPU for 400 s. By its source, Ray Train frees a stopped
    trial's CPUs only where it finds its cluster among all of the machine (ray.train.v2, placement_group_cleaner.py).
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    head = RayHead({**plain, "RAY_AUTH_MODE": "disabled"})
    try:
        head.wait()
        yield {"RAY_ADDRESS": head.address, "RAY_AUTH_MODE": "disabled"}
    finally:
        head.close()
