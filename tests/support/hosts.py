"""Several hosts on one machine, each a set of Linux namespaces: addresses, processes, name, /etc/hosts, /dev/shm, Ray's
folder and root's home of its own. They hang on a switch in a namespace of its own: no packet leaves it, and hosts of
parallel runs never meet.

    with network(folder, "head", "w1") as hosts:
        hosts["w1"].popen(["ray", "start", …])

A host is one process and what lives below it: killing that process kills the host at once, and it dies with the
process that runs the tests, however that ends.
"""

import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")
CLONE_NEWNET = 0x40000000
PATIENCE = 900.0
"""Seconds after which something hangs. A minute here was three on another machine: no limit is a measurement."""
WITH_TESTS = ["setpriv", "--pdeathsig", "KILL"]
"""A process begun with this dies when the tests do."""
BOOT = """
hostname "$1"
ip link set lo up
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind "$2/ray" /tmp/ray
for file in hosts passwd shadow; do mount --bind "$2/$file" "/etc/$file"; done
mount --bind "$2/home" "$3"
echo up
while :; do sleep 1000 & wait; done
"""
"""What a host's first process does; bash then buries the dead, which Ray would else take for alive."""


def why_no_hosts() -> str:
    """What this machine lacks for hosts in namespaces, in one line; empty if they work."""
    if os.geteuid():
        return "hosts in network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "setpriv") if not shutil.which(tool)]
    if missing:
        return f"hosts in network namespaces need {', '.join(missing)} (iproute2, util-linux)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "--mount-proc", "ip", "link", "add", "br0",
         "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return tried.stderr.strip() and f"hosts in network namespaces: {tried.stderr.strip()}"


def require_hosts() -> None:
    """Skip the test if this machine cannot have such hosts."""
    if why := why_no_hosts():
        pytest.skip(why)


class Host:
    """One host, up from the start until `kill()` or the end of its network."""

    def __init__(self, name: str, address: str, folder: Path, switch: int, hosts_file: str) -> None:
        self.name, self.address, self.folder, self._switch = name, address, folder, switch
        self.home = folder.parent / "home"
        """Root's home: the same path on every host, and a folder of its own (`folder`/home) behind it."""
        for inside in (self.home, folder / "ray", folder / "home"):
            inside.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(hosts_file)
        others = [line for line in Path("/etc/passwd").read_text().splitlines(True) if not line.startswith("root:")]
        (folder / "passwd").write_text(f"root:x:0:0:root:{self.home}:/bin/bash\n{''.join(others)}")
        (folder / "shadow").write_text("root:*:19000:0:99999:7:::\n")  # no password, and yet not locked
        Path("/tmp/ray").mkdir(exist_ok=True)
        namespaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--mount-proc", "--fork", "--kill-child"]
        self._process = subprocess.Popen(
            [*WITH_TESTS, "unshare", *namespaces, "bash", "-ec", BOOT, "host", name, str(folder), str(self.home)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout
        assert self._process.stderr
        if self._process.stdout.readline() != "up\n":
            raise RuntimeError(f"host {name} does not start: {self._process.stderr.read()}")
        self.pid = int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text())
        _ip("link", "add", "eth0", "netns", str(self.pid), "type", "veth", "peer", "name", self._port, "netns",
            str(switch))  # fmt: skip
        _ip("link", "set", self._port, "master", "br0", "up", inside=switch)
        _ip("address", "add", f"{address}/24", "dev", "eth0", inside=self.pid)
        _ip("link", "set", "eth0", "up", inside=self.pid)

    @property
    def _port(self) -> str:
        return f"to-{self.name}"

    def popen(self, command: Sequence[str], cwd: str | Path = "/", **options: Any) -> "subprocess.Popen[str]":
        """`subprocess.Popen` on this host, in a process group of its own."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "--ipc"]
        options = {"start_new_session": True, "text": True, **options}
        return subprocess.Popen([*enter, "env", f"--chdir={cwd}", *command], **options)

    def run(self, *command: str, **options: Any) -> str:
        """Run a command on this host and return its stdout; raise if it fails."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{' '.join(command)} on {self.name}: {out}{err}"
        return str(out)

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a thread of this process that is in this host's network."""
        result: list[Result] = []
        failed: list[BaseException] = []

        def enter() -> None:
            try:
                with open(f"/proc/{self.pid}/ns/net") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"can't enter the network of {self.name}")
                result.append(function(*arguments))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter, name=f"on {self.name}")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return result[0]

    def processes(self) -> list[str]:
        """Command lines of all processes on this host."""
        return self.run("ps", "-eo", "args").splitlines()[1:] if self.is_up() else []

    def is_up(self) -> bool:
        """Whether this host has not been killed."""
        return self._process.poll() is None

    def cut(self) -> None:
        """Pull the cable: processes continue, packets no longer arrive."""
        _ip("link", "set", self._port, "down", inside=self._switch)

    def restore(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self._port, "up", inside=self._switch)

    def kill(self) -> None:
        """Power failure: every process on this host ends at once."""
        self._process.kill()
        self._process.communicate()  # at its end every process that held the pipe is gone


@contextmanager
def network(folder: Path, *names: str) -> Iterator[dict[str, Host]]:
    """Hosts of these names on a switch of their own; `folder` keeps what they write. All are gone afterwards."""
    addresses = {name: f"{_subnet()}.{10 + i}" for i, name in enumerate(names)}
    listed = [("127.0.0.1", "localhost"), *((address, name) for name, address in addresses.items())]
    hosts_file = "".join(f"{address} {name}\n" for address, name in listed)
    switch = subprocess.Popen([*WITH_TESTS, "unshare", "--net", "sleep", "infinity"], start_new_session=True)
    hosts: dict[str, Host] = {}
    try:
        _wait_for_namespace(switch.pid)
        _ip("link", "add", "br0", "type", "bridge", inside=switch.pid)
        _ip("link", "set", "br0", "up", inside=switch.pid)
        for name, address in addresses.items():
            hosts[name] = Host(name, address, folder / name, switch.pid, hosts_file)
        yield hosts
    finally:
        for host in hosts.values():
            with suppress(Exception):
                host.kill()
        switch.kill()
        switch.wait()


def _subnet() -> str:
    """The first three numbers of this process's addresses. Networks never meet, but logs are read side by side."""
    return f"10.{os.getpid() // 250 % 250}.{os.getpid() % 250}"


def _wait_for_namespace(pid: int) -> None:
    ours = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pid}/ns/net") == ours:
        os.sched_yield()


def _ip(*arguments: str, inside: int | None = None) -> None:
    """An `ip` command, in the network namespace of a process."""
    enter = ["nsenter", f"--target={inside}", "--net"] if inside else []
    done = subprocess.run([*enter, "ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def wait_until(is_so: Callable[[], Any], what: str, pause: float = 0.2) -> Any:
    """Wait until `is_so()` is true and return its value."""
    until = time.monotonic() + PATIENCE
    while not (answer := is_so()):
        assert time.monotonic() < until, f"{what}: not in {PATIENCE:g} s"
        time.sleep(pause)
    return answer


def trains(host: Host) -> bool:
    return any("RayTrainWorker" in process for process in host.processes())
