"""The main job on a real S3 server that is killed on the way: the same run, the same rows, nothing lost or doubled."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foldray import storage
from foldray.data.manifest import read_index, read_manifest
from foldray.results.metrics import read_metrics
from foldray.results.rows import read_hypotheses, read_rows
from tests.test_pipeline import TINY, finish, foldray, ids_in

if TYPE_CHECKING:
    from tests.s3_server import S3Server

pytest_plugins = ["tests.s3_server"]
pytestmark = pytest.mark.ray


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
    process.wait(timeout=3000)
    outages.join(timeout=60)
    assert outages.seen == list(Outages.STAGES)
    return process


def without_times(rows: list[dict]) -> list[dict]:
    measured = {"rtfx", "peak_rss_bytes", "train_seconds", "created"}
    return [{key: value for key, value in row.items() if key not in measured} for row in rows]


def test_the_whole_job_on_a_server_that_is_killed_in_every_stage(
    s3_server: "S3Server", s3_store: str, own_corpus: Path, tmp_path: Path
) -> None:
    corpus = f"{s3_store}/voices"
    storage.upload(own_corpus, corpus)
    tiny = [*TINY, "corpus.shard_minutes=0.5"]
    here = finish(foldray("run", "an4", f"corpus.path={own_corpus}", f"storage.root={tmp_path}", *tiny, "--json"))
    started = lambda: foldray("run", "an4", f"corpus.path={corpus}", f"storage.root={s3_store}", *tiny, "--json")  # noqa: E731
    there = finish(run_with_outages(s3_server, s3_store, 4.0, started))
    assert there["run_id"] == here["run_id"], "the same corpus, wherever it lies"
    assert without_times(there["rows"]) == without_times(here["rows"])
    assert [record["step"] for record in read_metrics(f"{s3_store}/runs/{there['run_id']}")] == list(range(1, 25))
    assert without_times(read_rows(s3_store)) == without_times(read_rows(str(tmp_path)))
    said = [sorted((h["depth"], h["id"], h["hypothesis"]) for h in read_hypotheses(store, here["run_id"]))
            for store in (s3_store, str(tmp_path))]  # fmt: skip
    assert said[0] == said[1]
    folder = f"{s3_store}/corpora/{storage.list_folders(f'{s3_store}/corpora')[0]}"
    manifest = read_manifest(folder)
    kept = [i for split in ("train", "valid", "test") for i in read_index(folder, manifest, split).ids.to_pylist()]
    assert sorted(kept) == sorted(ids_in(own_corpus))
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
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("storage.root: http://127.0.0.1:9 does not answer")
