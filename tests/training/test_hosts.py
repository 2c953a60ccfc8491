"""Training over several hosts, one of which is cut off and dies in the middle of an epoch.

The hosts are namespaces of this machine (tests/support/hosts.py); where there can't be any, the test skips with a line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load

from foldray import storage
from foldray.config.run_files import read_run_spec
from foldray.results.metrics import read_metrics
from foldray.training.job import TrainJob
from foldray.training.run_folder import whole_checkpoints
from tests.support.commands import TINY
from tests.support.hosts import PATIENCE, Host, network, require_hosts, trains, wait_until
from tests.support.paths import PROJECT
from tests.support.ray_head import HASTE, RAY, start_node
from tests.support.training import spawn

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

pytest_plugins = ["tests.support.s3_server"]
pytestmark = [pytest.mark.ray, pytest.mark.soak]

WORKERS = ("w1", "w2", "w3")
PORT = 6379
RECIPE = [
    *TINY, "optim.steps=40", "corpus.max_seconds=8", "batch.max_duration=8", "checkpoint.every_steps=5",
    "valid.every_steps=1000", "scale.placement=STRICT_SPREAD",
]  # fmt: skip


def start_ray(hosts: dict[str, Host], environment: dict[str, str]) -> str:
    """A Ray head without CPUs, workers of one CPU each; the address that drivers on these hosts use."""
    address = f"{hosts['head'].address}:{PORT}"
    _ray(hosts["head"], environment, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
    for name in WORKERS:
        _ray(hosts[name], environment, f"--address={address}", "--num-cpus=1")
    return address


def _ray(host: Host, environment: dict[str, str], *options: str) -> None:
    command = [RAY, "start", "--block", f"--node-ip-address={host.address}", "--object-store-memory=100000000",
               "--include-log-monitor=false"]  # fmt: skip
    start_node(partial(host.popen, [*command, *options], env=environment), host.folder / "log")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    require_hosts()
    with network(tmp_path / "hosts", "head", *WORKERS, "s3") as up:
        yield up


class Training:
    """`python -m pipelines.train` on the head: what it says goes to `log`."""

    def __init__(self, head: Host, environment: dict[str, str], *arguments: str) -> None:
        self.log = head.folder / "train.log"
        with self.log.open("w") as log:
            self.process = head.popen(
                [sys.executable, "-m", "pipelines.train", *arguments, "--json"],
                PROJECT, env=environment, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def wait_until(self, is_so: Callable[[], Any], what: str) -> None:
        """Until something is so; fails with the log where it is not, or training ended first."""
        over = lambda: self.process.poll() is not None  # noqa: E731
        try:
            wait_until(lambda: is_so() or over(), what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}") from None
        assert not over(), f"training ended before {what}\n{self.log.read_text()}"

    def finish(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, self.log.read_text()
        value: dict[str, Any] = json.loads(out)
        return value


def test_a_third_host_takes_over_from_one_that_is_cut_off_and_dies(
    hosts: dict[str, Host], server: "S3Server", own_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    ask = hosts["s3"].call  # this process is on none of the hosts
    ask(storage.upload, own_corpus, server.uri("voices"))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**plain, **HASTE, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(PROJECT)}
    environment["RAY_ADDRESS"] = start_ray(hosts, environment)
    place = [f"corpus.path={server.uri('voices')}", f"storage.root={server.uri('store')}"]
    cut = Training(hosts["head"], environment, "an4", *place, *RECIPE)
    steps = lambda: ask(whole_steps, server.uri("store"))  # noqa: E731
    cut.wait_until(lambda: steps()[-1:] > [5], "the second checkpoint")
    first = [name for name in WORKERS if trains(hosts[name])]
    (spare,) = set(WORKERS) - set(first)
    lost = hosts[first[0]]
    lost.cut()
    resumed_from = steps()[-1]
    cut.wait_until(lambda: trains(hosts[spare]), f"{spare} takes over")
    lost.kill()
    resumed = cut.finish()
    whole = train_undisturbed(ask, server, resumed["run"])
    theirs, ours = (ask(read_metrics, run) for run in (whole, resumed["run"]))
    assert [record["step"] for record in ours] == list(range(1, 41)), "every step once"
    assert ours[resumed_from - 1]["epoch"] == ours[resumed_from]["epoch"], "it was in the middle of an epoch"
    for our, their in zip(ours, theirs, strict=True):
        assert (our["epoch"], our["audio_seconds"]) == (their["epoch"], their["audio_seconds"]), "the same order"
        assert our["ctc"] == pytest.approx(their["ctc"], abs=1e-4)
    theirs, ours = (load(ask(newest_weights, run)) for run in (whole, resumed["run"]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours), "as many workers as before: bit-equal"


def train_undisturbed(ask: Callable[..., Any], server: "S3Server", run: str) -> str:
    """The same run in two bare processes without Ray; where it is."""
    corpus = ask(storage.list_folders, server.uri("store/corpora"))[0]
    spec, init = ask(read_run_spec, run), f"{run}/init"
    whole = TrainJob(spec, server.uri("whole"), server.uri(f"store/corpora/{corpus}"), init)
    ask(spawn, [whole])
    return whole.run


def newest_weights(run: str) -> bytes:
    return storage.read_bytes(f"{whole_checkpoints(run)[-1].uri}/model.safetensors")


def whole_steps(store: str) -> list[int]:
    """Steps of the whole checkpoints of a store with one run."""
    runs = storage.list_folders(f"{store}/runs")
    return [found.step for run in runs for found in whole_checkpoints(f"{store}/runs/{run}")]
