"""The main job on Ray, as a user runs it: real workers, real kills, a real S3 server. The slow tier."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
import torch
from safetensors.torch import load
from transformers import HubertForCTC

from foldray import storage
from foldray.cli import main
from foldray.data.manifest import read_manifest, read_quarantine
from foldray.data.text import Units
from foldray.pretrained import write_random_checkpoint
from foldray.recipes import load_recipe
from foldray.results.metrics import read_metrics
from foldray.results.rows import read_hypotheses, read_rows
from foldray.seeding import load_folded
from foldray.training.attempts import newest_attempt
from tests.conftest import AN4
from tests.hosts import PATIENCE, wait_until
from tests.test_prepare import damage, ids_in, ids_out
from tests.test_training import MEASURED

if TYPE_CHECKING:
    from tests.s3_server import S3Server

pytest_plugins = ["tests.ray_head", "tests.s3_server"]
pytestmark = pytest.mark.ray

TINY = [
    "model.config.hidden_size=48", "model.config.num_attention_heads=2", "model.config.intermediate_size=96",
    "fold.depths=[3,6]", "optim.epochs=null", "optim.steps=24", "checkpoint.every_steps=4", "valid.every_steps=12",
]  # fmt: skip

JOB = [
    "an4",
    *TINY,
    "corpus.max_quarantine=0.5",
    "corpus.max_seconds=20",
    "corpus.shard_minutes=0.5",
    "batch.max_duration=20",
]


def foldray(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A `foldray` command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "foldray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def communicate(process: subprocess.Popen[str]) -> tuple[str, str]:
    """stdout and stderr of a command that ends by itself; one that doesn't leaves the cores to the other tests."""
    try:
        return process.communicate(timeout=PATIENCE)
    finally:
        process.kill()


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = communicate(process)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1, f"{out}\n{err}"
    value: dict[str, Any] = json.loads(out)
    return value


def again(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command says in this process, without Ray: there is nothing left to do."""
    main([*arguments, "--json"])
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert not ray.is_initialized()
    return value


def kill_after(process: subprocess.Popen[str], store: Path, checkpoint: str) -> None:
    """SIGKILL the driver as soon as a checkpoint is whole."""
    try:
        wait_for(process, store, checkpoint)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def interrupt_after(process: subprocess.Popen[str], store: Path, checkpoint: str) -> None:
    """Ctrl-C as soon as a checkpoint is whole: the command says where the run stands."""
    try:
        wait_for(process, store, checkpoint)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 1
    assert json.loads(out) == {"error": "interrupted", "where": "foldray"}
    assert "interrupted, newest checkpoint: step" in err
    assert err.strip().endswith("stopped; run the same command again to go on")


def wait_for(process: subprocess.Popen[str], store: Path, checkpoint: str) -> None:
    """Until a checkpoint is whole; fails with what the command said where it ends before."""
    whole = lambda: list(store.glob(f"runs/*/checkpoints/{checkpoint}-*/manifest.json"))  # noqa: E731
    wait_until(lambda: whole() or process.poll() is not None, checkpoint, pause=0.05)
    assert whole(), process.communicate()[1]


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


def test_a_killed_run_resumes_bit_equal_and_a_whole_one_is_reused(
    ray_head: dict[str, str],
    damaged: tuple[Path, dict[str, str]],
    quiet: tuple[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGKILL of the driver in the middle, on a cluster; the next command goes on."""
    job = [*JOB, f"corpus.path={damaged[0]}", f"storage.root={tmp_path}"]
    kill_after(foldray("train", *job, **ray_head), tmp_path, "step-00000008")
    result = finish(foldray("run", *job, "--json", **ray_head))
    assert_same_run(str(tmp_path), result, quiet)
    (run,) = (tmp_path / "runs").iterdir()
    attempt = newest_attempt(str(run))
    assert attempt
    assert attempt.submission == 2
    first = min(int(path.stem[-8:]) for path in (run / "metrics").glob(f"{attempt}-*.jsonl"))
    assert 8 < first <= 24, "it went on from a checkpoint"
    assert (tmp_path / "report" / "index.html").exists()
    assert again(capsys, "run", *job) == result, "the rows of the first"
    assert_nothing_is_lost(str(tmp_path), damaged)


class Outages(threading.Thread):
    """Kills the server for a while as soon as each stage has left its first file in the store."""

    STAGES = ("shards/train-", "checkpoints/step-", "model/fold.json")
    """What the store holds when prepare, train and evaluate are in the middle of their work."""

    def __init__(self, server: "S3Server", prefix: str, process: "subprocess.Popen[str]", seconds: float) -> None:
        super().__init__(daemon=True)
        self.server, self.prefix, self.process, self.seconds = server, prefix, process, seconds
        self.seen: list[str] = []

    def run(self) -> None:
        for stage in self.STAGES:
            while not any(stage in key for key in self.server.keys(self.prefix)):
                if self.process.poll() is not None:
                    return
                time.sleep(0.1)
            self.server.kill()
            time.sleep(self.seconds)
            self.server.start()
            self.seen.append(stage)


def run_with_outages(
    server: "S3Server", store: str, seconds: float, start: Callable[[], "subprocess.Popen[str]"]
) -> "subprocess.Popen[str]":
    """The finished process; the server was away for `seconds` in each stage."""
    process = start()
    outages = Outages(server, store.removeprefix("s3://").partition("/")[2], process, seconds)
    outages.start()
    process.wait(timeout=PATIENCE)
    outages.join(timeout=PATIENCE)
    assert outages.seen == list(Outages.STAGES), process.communicate()[1]
    return process


def test_the_whole_job_on_a_server_that_is_killed_in_every_stage(
    s3_server: "S3Server",
    s3_store: str,
    damaged: tuple[Path, dict[str, str]],
    quiet: tuple[str, dict[str, Any]],
) -> None:
    storage.upload(damaged[0], f"{s3_store}/voices")
    job = [*JOB, f"corpus.path={s3_store}/voices", f"storage.root={s3_store}", "--json"]
    said = finish(run_with_outages(s3_server, s3_store, 4.0, lambda: foldray("run", *job)))
    assert_same_run(s3_store, said, quiet)
    assert_nothing_is_lost(s3_store, damaged)
    prefix = s3_store.removeprefix("s3://").partition("/")[2]
    assert not [key for key in s3_server.keys(prefix) if key.endswith("/")], "no empty 'directory' objects"


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
    assert err.strip().splitlines()[-1].startswith("storage.root: http://127.0.0.1:9 does not answer")


def test_a_waveform_model_from_a_stock_checkpoint_on_disk(
    ray_head: dict[str, str], own_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers on a Ray of their own until Ctrl-C, which says where the run stands; then nothing is left but the
    store, under another name, and `resume` goes on with it on a cluster. The loss falls at every depth, and stock
    transformers opens the result.
    """
    spec = load_recipe("hubert-tiny")
    stock = tmp_path / "stock"
    units = Units(["<pad>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    write_random_checkpoint(spec.model, spec.fold.num_layers, units, 7, stock)
    assert load_folded(spec.model, str(stock), spec.fold.plan(), units, 0)[2] == [], "nothing starts anew"
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


@pytest.mark.skipif(not AN4.is_dir(), reason="AN4 is not beside the project (../shared/data/an4)")
def test_an4_prepares_whole(tmp_path: Path) -> None:
    summary = finish(foldray("prepare", "an4", f"corpus.path={AN4}", f"storage.root={tmp_path}", "--json"))
    assert (summary["utterances_in"], summary["utterances_out"], summary["quarantined"]) == (1078, 1078, 0)
    assert summary["hours"] == pytest.approx((42.44 + 5.95) / 60, abs=0.01)
    manifest = read_manifest(summary["manifest"].removesuffix("/manifest.json"))
    test = [shard for shard in manifest.shards if shard.split == "test"]
    assert sum(shard.rows for shard in test) == 130


def test_a_job_entry_point_is_the_same_command() -> None:
    job = subprocess.run(
        [sys.executable, "-m", "pipelines.train", "an4", "corpus.path=/nowhere/at/all", "--json"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert job.returncode == 2
    assert json.loads(job.stdout)["where"] == "corpus.path"
