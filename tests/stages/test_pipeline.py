"""The main job on Ray, as a user runs it: real workers, real kills, a real S3 server. The slow tier."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch
from safetensors.torch import load
from transformers import HubertForCTC

from foldray import storage
from foldray.cli.main import main
from foldray.config.recipes import load_recipe
from foldray.data.manifest import read_manifest, read_quarantine
from foldray.models.from_checkpoint import load_folded
from foldray.models.stock import write_random_checkpoint
from foldray.models.tokenizer import Tokenizer
from foldray.results.metrics import read_metrics
from foldray.results.reader import read_hypotheses, read_rows
from foldray.training.fencing import newest_attempt
from tests.support.commands import TINY, communicate, finish, foldray
from tests.support.corpora import damage, ids_in, ids_out
from tests.support.hosts import PATIENCE, wait_until
from tests.support.paths import AN4, PROJECT
from tests.support.training import MEASURED

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

pytest_plugins = ["tests.support.ray_head", "tests.support.s3_server"]
pytestmark = pytest.mark.ray


JOB = [
    "an4",
    *TINY,
    "corpus.max_quarantine=0.5",
    "corpus.max_seconds=20",
    "corpus.shard_minutes=0.5",
    "batch.max_duration=20",
]


def again(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command says in this process, without Ray: there is nothing left to do."""
    main([*arguments, "--json"])
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert not ray.is_initialized()
    return value


def interrupt_after(process: subprocess.Popen[str], store: Path, checkpoint: str) -> None:
    """Ctrl-C as soon as a checkpoint is whole: the command says where the run stands."""
    whole = lambda: list(store.glob(f"runs/*/checkpoints/{checkpoint}-*/manifest.json"))  # noqa: E731
    try:
        wait_until(lambda: whole() or process.poll() is not None, checkpoint, pause=0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 1, err
    assert json.loads(out) == {"error": "interrupted", "where": "foldray"}
    assert "interrupted, newest checkpoint: step" in err
    assert err.strip().endswith("stopped; run the same command again to resume")


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    measured = {"rtfx", "peak_rss_bytes", "train_seconds", "created"}
    return [{key: value for key, value in row.items() if key not in measured} for row in rows]


def hypotheses(store: str, run_id: str) -> list[tuple[Any, ...]]:
    return sorted((said["depth"], said["id"], said["hypothesis"]) for said in read_hypotheses(store, run_id))


@pytest.fixture(scope="module")
def damaged(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The spoken corpus with damaged audio in it, and the reason each piece should get."""
    corpus = Path(shutil.copytree(spoken, tmp_path_factory.mktemp("damaged") / "voices"))
    return corpus, damage(corpus)


@pytest.fixture(scope="module")
def quiet(damaged: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A store with the run that nobody disturbed, by a Ray of its own, and what its command said."""
    store = tmp_path_factory.mktemp("quiet")
    return str(store), finish(foldray("run", *JOB, f"corpus.path={damaged[0]}", f"storage.root={store}", "--json"))


def assert_same_run(store: str, said: dict[str, Any], quiet: tuple[str, dict[str, Any]]) -> None:
    """Weights, rows, hypotheses and the order of steps are those of the quiet run."""
    run_id = said["run_id"]
    assert run_id == quiet[1]["run_id"], "the same corpus, wherever it lies"
    ours, theirs = (
        load(storage.read_bytes(f"{root}/runs/{run_id}/model/model.safetensors")) for root in (store, quiet[0])
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    metrics, expected = (
        [{k: v for k, v in record.items() if k not in MEASURED} for record in read_metrics(f"{root}/runs/{run_id}")]
        for root in (store, quiet[0])
    )
    assert [record["step"] for record in metrics] == list(range(1, 25))
    assert metrics == expected
    assert [row["depth"] for row in said["rows"]] == [3, 6]
    assert without_times(said["rows"]) == without_times(quiet[1]["rows"])
    assert without_times(read_rows(store)) == without_times(read_rows(quiet[0]))
    assert hypotheses(store, run_id) == hypotheses(quiet[0], run_id)


def assert_nothing_is_lost(store: str, damaged: tuple[Path, dict[str, str]]) -> None:
    corpus, reasons = damaged
    (name,) = storage.list_folders(f"{store}/corpora")
    manifest = read_manifest(f"{store}/corpora/{name}")
    quarantined = read_quarantine(f"{store}/corpora/{name}")
    assert {entry["id"]: entry["reason"] for entry in quarantined} == reasons
    assert manifest.quarantined == len(quarantined)
    kept = ids_out(f"{store}/corpora/{name}", manifest)
    assert sorted(kept + [entry["id"] for entry in quarantined]) == sorted(ids_in(corpus))


class Outages(threading.Thread):
    """Kills the server for a while as soon as each stage, in turn, has left its first file in the store."""

    def __init__(
        self, server: "S3Server", prefix: str, process: "subprocess.Popen[str]", seconds: float, *stages: str
    ) -> None:
        super().__init__(daemon=True)
        self._server, self._prefix, self._process, self._seconds = server, prefix, process, seconds
        self._stages, self._problem = stages, ""
        self.start()

    def run(self) -> None:
        try:
            for stage in self._stages:
                wait_for_key(self._server, self._prefix, stage, self._process)
                self._server.kill()
                time.sleep(self._seconds)
                self._server.start()
        except BaseException as error:
            self._problem = repr(error)

    def wait(self) -> None:
        """Until all are over; fails where the command ended before."""
        self.join()
        assert not self._problem, self._problem


def wait_for_key(server: "S3Server", prefix: str, pattern: str, process: "subprocess.Popen[str]") -> None:
    """Until the store has a key with this in it; fails with what the command said where it ends before."""
    is_there = lambda: any(re.search(pattern, key) for key in server.keys(prefix))  # noqa: E731
    wait_until(lambda: process.poll() is not None or is_there(), pattern, pause=0.05)
    assert process.poll() is None, process.communicate()[1]


def kill_in_training(driver: "subprocess.Popen[str]", server: "S3Server", prefix: str) -> None:
    """SIGKILL of a driver after its eighth step, and two outages of its store before."""
    try:
        Outages(server, prefix, driver, 4.0, "shards/train-", "checkpoints/step-").wait()
        wait_for_key(server, prefix, "checkpoints/step-00000008.*/manifest.json", driver)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == -signal.SIGKILL


@pytest.mark.soak
def test_a_driver_and_a_server_that_are_killed_leave_the_quiet_run(
    ray_head: dict[str, str],
    s3_server: "S3Server",
    s3_store: str,
    damaged: tuple[Path, dict[str, str]],
    quiet: tuple[str, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prepare, train and evaluate wait while their store is killed and away; the driver gets SIGKILL in the middle of
    training, on a cluster, and the next command goes on.
    """
    storage.upload(damaged[0], f"{s3_store}/voices")
    job = [*JOB, f"corpus.path={s3_store}/voices", f"storage.root={s3_store}"]
    prefix = s3_store.removeprefix("s3://").partition("/")[2]
    kill_in_training(foldray("run", *job, "--json", **ray_head), s3_server, prefix)
    process = foldray("run", *job, "--json", **ray_head)
    outages = Outages(s3_server, prefix, process, 4.0, "model/fold.json")
    said = finish(process)
    outages.wait()
    assert_same_run(s3_store, said, quiet)
    assert_nothing_is_lost(s3_store, damaged)
    run = f"{s3_store}/runs/{said['run_id']}"
    attempt = newest_attempt(run)
    assert attempt
    assert attempt.submission == 2
    parts = [name for name in storage.list_files(f"{run}/metrics") if name.startswith(f"{attempt}-")]
    assert 8 < min(int(name.removesuffix(".jsonl")[-8:]) for name in parts) <= 24, "it went on from a checkpoint"
    assert storage.exists(f"{s3_store}/report/index.html")
    assert again(capsys, "run", *job) == said, "the rows of the first"
    assert not [key for key in s3_server.keys(prefix) if key.endswith("/")], "no empty 'directory' objects"


@pytest.mark.main
def test_a_store_that_stays_away_is_one_line(s3_server: "S3Server", s3_store: str, own_corpus: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "foldray", "prepare", "an4", f"corpus.path={own_corpus}", f"storage.root={s3_store}",
         "corpus.max_seconds=16"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**s3_server.environment, "PATH": "/usr/bin:/bin", "FOLDRAY_STORAGE_RETRY_SECONDS": "2",
             "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    )  # fmt: skip
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("storage.root: http://127.0.0.1:9 is unavailable")


@pytest.mark.main
def test_a_ray_that_does_not_start_is_one_line(own_corpus: Path, tmp_path: Path) -> None:
    command = ["prepare", "an4", f"corpus.path={own_corpus}", f"storage.root={tmp_path}", "corpus.max_seconds=16"]
    process = foldray(*command, RAY_TMPDIR="/proc/nowhere")
    _, err = communicate(process)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("Ray: does not start here (")


@pytest.mark.main
def test_a_waveform_model_from_a_stock_checkpoint_on_disk(
    ray_head: dict[str, str], own_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers on a Ray of their own until Ctrl-C, which says where the run stands; then nothing is left but the
    store, under another name, and `resume` goes on with it on a cluster. The loss falls at every depth, and stock
    transformers opens the result.
    """
    spec = load_recipe("hubert-tiny")
    stock = tmp_path / "stock"
    tokenizer = Tokenizer(["<pad>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    write_random_checkpoint(spec.model, spec.fold.num_layers, tokenizer, 7, stock)
    assert load_folded(spec.model, str(stock), spec.fold.plan(), tokenizer, 0)[2] == [], "nothing starts anew"
    arguments = [
        "hubert-tiny", f"corpus.path={own_corpus}", f"model.checkpoint={stock}",
        f"storage.root={tmp_path / 'store'}", "optim.steps=40", "optim.lr=2e-3", "checkpoint.every_steps=10",
    ]  # fmt: skip
    interrupt_after(foldray("train", *arguments, "--json"), tmp_path / "store", "step-00000010")
    shutil.rmtree(stock)
    shutil.rmtree(own_corpus)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    run = next((tmp_path / "elsewhere" / "runs").iterdir())
    trained = finish(foldray("resume", str(run), "scale.loader_threads=2", "--json", **ray_head))
    assert (trained["run"], trained["run_id"], trained["step"]) == (str(run), run.name, 40)
    assert trained["resumed_from_step"] >= 10
    assert again(capsys, "resume", str(run))["resumed_from_step"] == 40
    metrics = read_metrics(trained["run"])
    for depth in map(str, spec.fold.depths):
        first, last = (sum(r["ctc"][depth] for r in part) / 5 for part in (metrics[:5], metrics[-5:]))
        assert last < 0.8 * first, f"depth {depth}"
    model, report = HubertForCTC.from_pretrained(f"{trained['run']}/model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == spec.fold.num_layers


@pytest.mark.main
@pytest.mark.skipif(not AN4.is_dir(), reason="AN4 is not beside the project (../shared/data/an4)")
def test_an4_prepares_whole(ray_head: dict[str, str], tmp_path: Path) -> None:
    command = ["prepare", "an4", f"corpus.path={AN4}", f"storage.root={tmp_path}", "--json"]
    summary = finish(foldray(*command, **ray_head))
    assert (summary["utterances_in"], summary["utterances_out"], summary["quarantined"]) == (1078, 1078, 0)
    assert summary["hours"] == pytest.approx((42.44 + 5.95) / 60, abs=0.01)
    manifest = read_manifest(summary["manifest"].removesuffix("/manifest.json"))
    test = [shard for shard in manifest.shards if shard.split == "test"]
    assert sum(shard.rows for shard in test) == 130


@pytest.mark.main
def test_a_job_entry_point_is_the_same_command() -> None:
    job = subprocess.run(
        [sys.executable, "-m", "pipelines.train", "an4", "corpus.path=/nowhere/at/all", "--json"],
        capture_output=True, text=True, check=False, cwd=PROJECT,
    )  # fmt: skip
    assert job.returncode == 2
    assert json.loads(job.stdout)["where"] == "corpus.path"
