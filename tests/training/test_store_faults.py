"""A store with faults: training ends with the same bits as on a local folder, and readers never see partial files.

An outage of 30 seconds: FOLDRAY_TEST_AWAY_SECONDS=30 python -m pytest tests/training/test_store_faults.py -k away
"""

import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load

from foldray import storage
from foldray.config.load import override_spec
from foldray.data.manifest import Manifest
from foldray.results.metrics import read_metrics
from foldray.storage.layout import MANIFEST_FILE
from foldray.training.checkpoint import read_checkpoint, read_verified
from foldray.training.context import WorkerContext
from foldray.training.fencing import Attempt, claim_group, claim_submission
from foldray.training.final_model import finish_run
from foldray.training.job import TrainJob
from foldray.training.loop import train_model
from foldray.training.run_folder import whole_checkpoints
from tests.support.faulty_proxy import FaultKind, FaultyProxy, Request
from tests.support.training import MEASURED, assert_same, job_for

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

pytest_plugins = ["tests.support.s3_server"]

AWAY_SECONDS = float(os.environ.get("FOLDRAY_TEST_AWAY_SECONDS", "5"))
RACERS, ROUNDS = 8, 4


@pytest.fixture
def proxy(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch, s3_store: str) -> Iterator[FaultyProxy]:
    """A proxy between this process and the store."""
    assert s3_store  # sets its environment before this fixture
    with FaultyProxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


# --- Faults ----------------------------------------------------------------------------------------


class Away:
    """503 for every request for some seconds, from the first upload of a checkpoint."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._until = seconds, 0.0

    def __call__(self, request: Request) -> FaultKind | None:
        if not self._until and request.method == "PUT" and "/checkpoints/" in request.key:
            self._until = time.monotonic() + self._seconds
        return "503" if time.monotonic() < self._until else None


class Throttled:
    """503 or 429 for a random fifth of all requests."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def __call__(self, _: Request) -> FaultKind | None:
        return self._rng.choice(["503", "429", *[None] * 8])


class Cut:
    """The first try of every upload is cut; the response to the second try of some is lost."""

    def __init__(self) -> None:
        self._tries: Counter[str] = Counter()

    def __call__(self, request: Request) -> FaultKind | None:
        if request.method != "PUT":
            return None
        self._tries[request.key] += 1
        if self._tries[request.key] == 1:
            return "cut"
        return "lost" if self._tries[request.key] == 2 and len(self._tries) % 5 == 0 else None


class Reader(threading.Thread):
    """Reads a run repeatedly on a connection without faults; `seen` counts what it opened."""

    def __init__(self, run: str) -> None:
        super().__init__(daemon=True)
        self._run, self._over = run, threading.Event()
        self.seen: Counter[str] = Counter()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._look()
        except BaseException as error:
            self.failure = error

    def _look(self) -> None:
        for found in whole_checkpoints(self._run)[-1:]:
            try:
                saved = read_checkpoint(found.uri)
            except FileNotFoundError:  # deleted since it was listed, its manifest first
                assert not storage.exists(storage.join(found.uri, MANIFEST_FILE))
                self.seen["gone"] += 1
            else:
                assert saved.cursor.step == found.step
                self.seen["checkpoints"] += 1
        records = read_metrics(self._run)
        assert [record["step"] for record in records] == list(range(1, len(records) + 1))
        kinds = {frozenset(record) for record in timeless(records)}
        assert len(kinds) <= 1
        self.seen["metrics"] += 1

    def finish(self) -> None:
        """Stop and raise the first failure."""
        self._over.set()
        self.join(60)
        assert not self.is_alive(), "the reader hangs"
        if self.failure:
            raise self.failure


def timeless(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in records]


def tensors(run: str) -> dict[str, torch.Tensor]:
    """Return all tensors of the newest checkpoint and of the finished model, by file."""
    files = read_verified(whole_checkpoints(run)[-1].uri)
    files |= {f"model/{name}": storage.read_bytes(f"{run}/model/{name}") for name in storage.list_files(f"{run}/model")}
    kept = {name: load(data) for name, data in files.items() if name.endswith(".safetensors")}
    return {f"{name}:{key}": tensor for name, part in sorted(kept.items()) for key, tensor in sorted(part.items())}


@pytest.fixture(scope="module")
def on_a_folder(prepared: tuple[str, Manifest], tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A finished run on a local folder, most of whose checkpoints were deleted again."""
    job = job_for("parakeet", prepared, tmp_path_factory.mktemp("folder"), epochs=3)
    job = replace(job, spec=override_spec(job.spec, ["checkpoint.every_steps=2"]))
    finish(job)
    return job


def finish(job: TrainJob) -> None:
    trained = train_model(job, WorkerContext())
    finish_run(job, trained.final_steps, trained.attempt)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["away", "throttled", "cut"])
def test_faults_change_no_bit_and_expose_no_partial_files(
    kind: str, on_a_folder: TrainJob, proxy: FaultyProxy, s3_server: "S3Server", s3_store: str
) -> None:
    job = replace(on_a_folder, run=f"{s3_store}/run", corpus=f"{s3_store}/corpus")
    storage.upload(Path(on_a_folder.corpus), job.corpus)
    reader = Reader(f"{job.run}?scheme=http&endpoint_override={s3_server.endpoint.removeprefix('http://')}")
    reader.start()
    proxy.fault = {"away": Away(AWAY_SECONDS), "throttled": Throttled(7), "cut": Cut()}[kind]
    finish(job)
    injected = proxy.injected.copy()
    proxy.fault = lambda request: None
    reader.finish()
    print(f"injected {dict(injected)}; the reader opened {dict(reader.seen)}")
    assert_same(tensors(on_a_folder.run), tensors(job.run))
    assert timeless(read_metrics(on_a_folder.run)) == timeless(read_metrics(job.run))
    kept = [[found.step for found in whole_checkpoints(run)] for run in (on_a_folder.run, job.run)]
    assert kept[0] == kept[1]
    assert injected.keys() == {"away": {"503"}, "throttled": {"503", "429"}, "cut": {"cut", "lost"}}[kind]
    assert min(injected.values()) >= 3
    assert reader.seen["checkpoints"]
    assert reader.seen["metrics"]


# --- Conditional writes ----------------------------------------------------------------------------


@pytest.mark.main
@pytest.mark.parametrize("kind", ["lost_win", "lost", "503"])
def test_one_of_many_concurrent_creators_wins_despite_lost_responses(
    kind: FaultKind, proxy: FaultyProxy, s3_store: str
) -> None:
    rng = random.Random(3)
    lost: set[str] = set()

    def fault(request: Request) -> FaultKind | None:
        if request.method != "PUT":
            return None
        if kind != "lost_win":
            return kind if rng.random() < 0.4 else None
        return None if request.key in lost else "lost_win"

    proxy.fault = fault
    for number in range(ROUNDS):
        uri = f"{s3_store}/race-{number}"
        start = threading.Barrier(RACERS)

        def race(data: bytes, uri: str = uri, start: threading.Barrier = start) -> bool:
            start.wait()
            return storage.create(uri, data)

        with ThreadPoolExecutor(RACERS) as pool:
            tickets = [uuid.uuid4().hex.encode() for _ in range(RACERS)]
            won = list(pool.map(race, tickets))
        assert sum(won) == 1
        assert storage.read_bytes(uri) == tickets[won.index(True)]
    assert proxy.injected[kind] >= ROUNDS


@pytest.mark.main
def test_attempts_are_numbered_without_gaps_despite_lost_responses(proxy: FaultyProxy, s3_store: str) -> None:
    rng = random.Random(5)
    proxy.fault = lambda request: rng.choice(["lost", "cut", "503", *[None] * 6]) if request.method == "PUT" else None
    run = f"{s3_store}/run"
    with ThreadPoolExecutor(RACERS) as pool:
        claimed = list(pool.map(lambda _: claim_submission(run), range(RACERS)))
        groups = list(pool.map(lambda _: claim_group(run, RACERS), range(RACERS)))
    assert sorted(claimed) == [Attempt(number) for number in range(1, RACERS + 1)]
    assert sorted(groups) == [Attempt(RACERS, number) for number in range(1, RACERS + 1)]
    assert proxy.injected["lost"]
