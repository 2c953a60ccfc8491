"""Fixtures for the S3 server of `benchmarks.s3_server`.

`pytest_plugins = ["tests.support.s3_server"]` makes `s3_server` and `s3_store` available to a test module.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.s3_server import S3Server
from tests.support.hosts import Host

__all__ = ["S3Server", "s3_server", "s3_store", "server"]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's S3 server; processes that use it need its `environment`."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def s3_store(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An unused prefix in the bucket, with this process's environment set for it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.uri(f"store-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def server(hosts: dict[str, Host], tmp_path: Path) -> Iterator[S3Server]:
    """An S3 server on a host of its own."""
    (tmp_path / "s3").mkdir()
    server = S3Server(tmp_path / "s3", hosts["s3"].address, hosts["s3"].popen)
    try:
        hosts["s3"].call(server.start)
        yield server
    finally:
        server.close()
