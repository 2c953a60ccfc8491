"""Transcribe a corpus on an S3 server while its workers and drivers are killed, and check that every id is there once.

    python -m tests.support.transcribe_kills --utterances 10000 --kills 5

The corpus is 1 s segments of 64 clips of noise and tones; the model is a small Conformer with random weights. Workers
and drivers take turns. Ray stays up, as on a cluster: `ray start --head`, three CPUs, two workers.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foldray import FoldPlan, storage
from foldray.models.save_load import save_model
from foldray.storage.layout import TranscriptsFolder
from foldray.storage.parquet import parse_parquet
from tests.support.corpora import encode_wav
from tests.support.hosts import wait_until
from tests.support.ray_head import RayHead
from tests.support.s3_server import S3Server
from tests.support.tiny import TOKENIZER, folded

CLIPS, CLIP_SECONDS, SEGMENT_SECONDS = 64, 30, 1.0


def write_corpus(folder: str, utterances: int) -> list[str]:
    """Write a corpus of segments; return its ids."""
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        tone = np.sin(np.arange(CLIP_SECONDS * 16_000) * (0.01 + 0.001 * i))
        clip = encode_wav(0.2 * tone + 0.05 * rng.standard_normal(len(tone)))
        storage.write_bytes(storage.join(folder, "clips", f"{i}.wav"), clip)
    rows = [
        {
            "id": f"utterance-{n:06d}",
            "audio": f"clips/{n % CLIPS}.wav",
            "offset": round((n // CLIPS) * 0.17 % (CLIP_SECONDS - SEGMENT_SECONDS), 2),
            "duration": SEGMENT_SECONDS,
        }
        for n in range(utterances)
    ]
    storage.write_bytes(storage.join(folder, "train.jsonl"), "".join(json.dumps(row) + "\n" for row in rows).encode())
    return [str(row["id"]) for row in rows]


def write_tiny_model(folder: Path) -> str:
    save_model(folded("parakeet", FoldPlan(2, (2, 4))).eval(), folder, TOKENIZER)
    return str(folder)


class Job:
    """`python -m pipelines.transcribe` in a process of its own."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path) -> None:
        command = [sys.executable, "-m", "pipelines.transcribe", *arguments, "--workers", "2", "--json"]
        self.out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdout=self.out, stderr=errors, start_new_session=True
            )

    def wait_until(self, is_so: Callable[[], Any], what: str) -> None:
        """Wait until something is so; raise if the job ends before."""

        def ends() -> bool:
            if is_so():
                return True
            if self.process.poll() is not None:
                raise RuntimeError(f"the job ended (exit code {self.process.returncode}) before {what}")
            return False

        wait_until(ends, what)

    def kill(self) -> None:
        """SIGKILL of the driver."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> dict[str, Any]:
        """The command's JSON output."""
        if self.process.wait():
            raise RuntimeError(f"the job ended with exit code {self.process.returncode}")
        self.out.seek(0)
        value: dict[str, Any] = json.loads(self.out.read().splitlines()[-1])
        return value


def shards_of(out: str) -> int:
    """How many shards are there."""
    return sum(name.endswith(".parquet") for name in storage.list_files(storage.join(out, "shards")))


def kill_worker(head: RayHead) -> bool:
    """SIGKILL of one of the head's processes that transcribe; False if there is none."""
    workers = [
        pid for pid, title in head.processes().items() if title.startswith("ray::MapWorker(MapBatches(Transcriber)")
    ]
    for pid in workers[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(workers)


def transcribe_with_kills(
    arguments: list[str], environment: Mapping[str, str], head: RayHead, out: str, kills: int, log: Path
) -> tuple[dict[str, Any], list[str]]:
    """Run a job to its end, with a kill each time that another part of its shards is there.

    Returns:
        The JSON output of the driver that ended by itself, and what was killed, with the shards that were there.
    """
    killed: list[str] = []
    job = Job(arguments, environment, log)
    plan = TranscriptsFolder(out).plan
    job.wait_until(lambda: storage.exists(plan), "the plan")
    total = parse_parquet(storage.read_bytes(plan), plan).footer.num_row_groups
    for number in range(kills):
        due = max(1, total * (number + 1) // (kills + 2))
        job.wait_until(lambda: shards_of(out) >= due, f"{due} of {total} shards")  # noqa: B023
        if number % 2 == 0:
            job.wait_until(lambda: kill_worker(head), "a worker")
        else:
            job.kill()
            job = Job(arguments, environment, log)
        killed.append(f"{('worker', 'driver')[number % 2]} at {shards_of(out)} of {total} shards")
    return job.finish(), killed


def check_once(out: str, ids: list[str]) -> None:
    """Raise AssertionError unless every id has exactly one row in Parquet and one in JSON lines."""
    folder = TranscriptsFolder(out)
    tables, lines = Counter[str](), Counter[str]()
    for number in range(shards_of(out)):
        table = parse_parquet(storage.read_bytes(folder.shard(number)), out).read(["id"])
        tables.update(table["id"].to_pylist())
        lines.update(json.loads(line)["id"] for line in storage.read_bytes(folder.lines(number)).splitlines())
    assert tables == lines == Counter(ids), f"{len(tables)} ids, {tables.total()} rows, {len(ids)} expected"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "s3").mkdir()
        server = S3Server(work / "s3")
        server.start()
        os.environ.update(server.environment)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        head = RayHead({**plain, "RAY_AUTH_MODE": "disabled"})
        try:
            head.start()
            corpus, out = server.uri("corpus"), server.uri("out")
            ids = write_corpus(corpus, given.utterances)
            model = write_tiny_model(work / "model")
            around = {**plain, "RAY_ADDRESS": head.address, "RAY_AUTH_MODE": "disabled"}
            began = time.monotonic()
            arguments = [model, corpus, "-o", out]
            ended, killed = transcribe_with_kills(arguments, around, head, out, given.kills, work / "log")
            check_once(out, ids)
            print("\n".join(killed))
            print(
                f"{ended['utterances']} utterances, each once, {ended['hours']:.2f} h, {time.monotonic() - began:.0f} s"
            )
        finally:
            print((work / "log").read_text()[-3000:] if (work / "log").exists() else "", file=sys.stderr)
            head.close()
            server.close()


if __name__ == "__main__":
    main()
