"""The stages as Ray jobs: a client that has a checkout and a token, a head of its own on loopback, an S3 store whose
keys come with the job."""

import json
import re
import secrets
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from foldray import storage
from foldray.cli.main import main
from foldray.results.metrics import read_metrics
from foldray.results.reader import read_rows
from foldray.training.run_folder import whole_checkpoints
from tests.support.checkout import copy_checkout
from tests.support.commands import TINY
from tests.support.hosts import PATIENCE, wait_until
from tests.support.ray_head import RAY, RayHead

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

pytest_plugins = ["tests.support.s3_server"]
pytestmark = [pytest.mark.ray, pytest.mark.main]


class Head(RayHead):
    """A Ray head on loopback that asks for a token, and clients of its jobs."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self._checkout = checkout
        self._token = folder / "token"
        self._token.write_text(secrets.token_hex(32))
        self._token.chmod(0o600)
        self._around = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder),
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._token), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        super().__init__(self._around)

    def client(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """`ray job …` in the checkout; `output` has all that it says."""
        around = {**self._around, "RAY_API_SERVER_ADDRESS": self.dashboard, **environment}
        return subprocess.run(
            [RAY, "job", *arguments], cwd=self._checkout, env=around, timeout=PATIENCE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    def submit(self, *entry: str, keys: dict[str, str], wait: bool = True) -> str:
        """The id of a job that runs `python -m …` with the checkout around it."""
        job = f"job-{uuid.uuid4().hex[:8]}"
        options = ["--submission-id", job, "--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": keys})]
        said = self.client("submit", *options, *([] if wait else ["--no-wait"]), "--", "python", "-m", *entry)
        if wait:
            assert (said.returncode == 0) == (self.job(job)["status"] == "SUCCEEDED"), said.stdout
        return job

    def logs(self, job: str) -> list[str]:
        """What a job itself said, line by line."""
        said: str = self.job(f"{job}/logs")["logs"]
        return said.partition("Running entrypoint for job ")[2].splitlines()[1:]

    def stop(self, job: str) -> None:
        """What `ray job stop` requests, without the seconds in which its own process starts and training goes on."""
        self._request(f"{job}/stop", "POST")
        wait_until(lambda: self.job(job)["status"] != "RUNNING", f"the end of {job}")

    def job(self, job: str) -> dict[str, Any]:
        """What the head knows of a job."""
        return self._request(job)

    def _request(self, path: str, method: str = "GET") -> dict[str, Any]:
        asked = urllib.request.Request(
            f"{self.dashboard}/api/jobs/{path}",
            headers={"Authorization": f"Bearer {self._token.read_text()}"},
            method=method,
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            value: dict[str, Any] = json.load(answer)
            return value


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, and what a working copy collects: a .venv and a store."""
    folder = tmp_path_factory.mktemp("jobs") / "checkout"
    copy_checkout(folder)
    for name in (".venv/bin/python", "foldray-store/corpora/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("not for the cluster")
    return folder


@pytest.fixture(scope="module")
def head(checkout: Path) -> Iterator[Head]:
    head = Head(checkout.parent, checkout)
    try:
        head.start()
        yield head
    finally:
        head.close()


@pytest.fixture
def recipe(s3_store: str, own_corpus: Path) -> list[str]:
    """Arguments of a run whose corpus and store are in the bucket."""
    storage.upload(own_corpus, f"{s3_store}/voices")
    place = [f"corpus.path={s3_store}/voices", f"storage.root={s3_store}"]
    return ["an4", *place, *TINY, "optim.steps=120", "valid.every_steps=1000"]


def test_a_client_without_the_token_is_refused(head: Head) -> None:
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}):
        refused = head.client("list", **environment)
        assert refused.returncode == 1, refused.stdout
        assert "AuthenticationError" in refused.stdout


def test_a_wrong_job_ends_with_one_line_and_ships_the_checkout_only(head: Head, s3_server: "S3Server") -> None:
    wrong = head.submit("pipelines.train", "an5", keys=s3_server.environment)
    assert (head.job(wrong)["status"], head.job(wrong)["driver_exit_code"]) == ("FAILED", 2)
    (line,) = filter(None, head.logs(wrong))
    assert line.startswith("an5: no such recipe or file")
    (package,) = head.temporary.glob("session_latest/runtime_resources/working_dir_files/*/")
    assert {"foldray", "pipelines", "pyproject.toml"} < {entry.name for entry in package.iterdir()}
    assert not any((package / name).exists() for name in (".venv", "foldray-store"))


def test_the_doctor_as_a_job_checks_the_store_and_leaves_nothing_there(
    head: Head, s3_server: "S3Server", s3_store: str, recipe: list[str]
) -> None:
    job = head.submit("pipelines.doctor", *recipe, keys=s3_server.environment)
    seen = {tuple(line.split()[:2]): line for line in head.logs(job)}
    (node,) = (where for name, where in seen if name == "devices")
    assert "ok" in seen["audio", node]
    assert f"{s3_store}: 1 MiB written" in seen["storage", node]
    assert storage.list_files(s3_store) == []


def test_a_stopped_job_is_resumed_by_another_that_scores_and_reports(
    head: Head, s3_server: "S3Server", s3_store: str, recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = head.submit("pipelines.train", *recipe, keys=s3_server.environment, wait=False)
    stop_while_it_trains(head, stopped, s3_store)
    assert_it_showed_progress(head.logs(stopped))
    step = newest_step(s3_store)
    finished = head.submit("pipelines.run", *recipe, keys=s3_server.environment)
    printed = head.logs(finished)
    assert any(line.endswith(f", 2 workers, resuming from step {step}") for line in printed), printed
    assert any(line.startswith(f"trained   120 steps (resumed from step {step})") for line in printed), printed
    assert "trained   120 steps" in head.client("logs", finished).stdout
    (run,) = storage.list_folders(f"{s3_store}/runs")
    assert [record["step"] for record in read_metrics(f"{s3_store}/runs/{run}")] == list(range(1, 121))
    rows = sorted(read_rows(s3_store), key=lambda row: row["depth"])
    assert [row["depth"] for row in rows] == [3, 6]
    assert run.encode() in storage.read_bytes(f"{s3_store}/report/index.html")
    main(["evaluate", run, "--store", s3_store, "--json"])  # by its id, out of the bucket
    again = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["depth"], row["wer"]) for row in again] == [(row["depth"], row["wer"]) for row in rows]
    main(["report", s3_store])


def stop_while_it_trains(head: Head, job: str, store: str) -> None:
    """Stop a job after a checkpoint and a line of progress; returns when all its workers have ended."""
    wait_for_step(head, job, store, 8)
    # The driver hears of a step later than the store has its checkpoint.
    in_progress = lambda: any("loss by depth" in line for line in head.logs(job))  # noqa: E731
    wait_until(lambda: in_progress() or head.job(job)["status"] != "RUNNING", "progress")
    head.stop(job)
    assert head.job(job)["status"] == "STOPPED"
    wait_until(lambda: not trains(head), "the end of its workers")


def assert_it_showed_progress(printed: list[str]) -> None:
    assert any(line.startswith("prepared  47 of 47 utterances") for line in printed), printed
    assert any(re.match(r"training .*, 2 workers$", line) for line in printed), printed
    assert any(re.match(r"training +\d+%  step \d+  loss by depth  3: ", line) for line in printed), printed
    assert printed[-1] == "stopped; run the same command again to resume"


def wait_for_step(head: Head, job: str, store: str, step: int) -> None:
    """Until a job that trains has left a whole checkpoint at or beyond a step."""
    wait_until(lambda: newest_step(store) >= step or head.job(job)["status"] == "FAILED", f"step {step}")
    assert head.job(job)["status"] == "RUNNING", head.logs(job)


def newest_step(store: str) -> int:
    """Step of the newest whole checkpoint of a store with one run; 0 without."""
    runs = storage.list_folders(f"{store}/runs")
    return max([0, *(found.step for run in runs for found in whole_checkpoints(f"{store}/runs/{run}"))])


def trains(head: Head) -> bool:
    return any("RayTrain" in process or "pipelines" in process for process in head.processes().values())
