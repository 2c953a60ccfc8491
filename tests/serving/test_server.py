"""`foldray serve` with Ray, as OpenAI's own client uses it: formats, keys, a killed replica, and its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.ports import free_port
from tests.support.served import save_talkative, wav

pytestmark = [pytest.mark.main, pytest.mark.ray]
KEY = "test-key-" + "x" * 16
NAME = f"tiny-{os.getpid()}"
"""Of its own: processes of replicas are found by it."""
DEPTHS = (2, 3, 4, None)


class Server:
    """The command in a process of its own."""

    def __init__(self, model: str, log: Path) -> None:
        self.port, self.log = free_port(), log
        arguments = ("serve", model, "--port", str(self.port), "--name", NAME, "--threads", "1")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "foldray", *arguments], stdout=file, stderr=file,
                env={**environment, "FOLDRAY_API_KEY": KEY},
            )  # fmt: skip

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=300)

    def wait(self) -> None:
        while " serves " not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def replicas(self) -> list[int]:
        """Process ids of the replicas."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:  # it ended meanwhile
                continue
            if b"ServeReplica" in title and NAME.encode() in title:
                found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    own = Server(save_talkative(folder / "model"), folder / "log")
    try:
        own.wait()
        yield own
    finally:
        own.process.terminate()
        own.process.wait(60)


def text_of(server: Server, data: bytes, depth: int | None = None) -> str:
    name = NAME if depth is None else f"{NAME}@{depth}"
    return server.client().audio.transcriptions.create(model=name, file=("a.wav", data)).text


def test_openais_client_gets_every_format(server: Server) -> None:
    data = wav(6.0, 1)
    create = server.client().audio.transcriptions.create
    assert [model.id for model in server.client().models.list()] == [NAME, *(f"{NAME}@{depth}" for depth in (2, 3, 4))]
    plain = create(model=f"{NAME}@3", file=("a.wav", data))
    assert plain.text
    assert (plain.model_extra or {})["depth"] == 3
    kinds = {
        kind: create(model=f"{NAME}@3", file=("a.wav", data), response_format=kind) for kind in ("text", "srt", "vtt")
    }
    assert kinds["text"] == plain.text + "\n"
    assert kinds["srt"].startswith("1\n00:00:0")
    assert kinds["vtt"].startswith("WEBVTT\n\n00:00:0")
    verbose = create(
        model=f"{NAME}@3", file=("a.wav", data), response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )  # fmt: skip
    assert (verbose.text, verbose.duration) == (plain.text, 6.0)
    assert [word.word for word in verbose.words or []] == plain.text.split()
    assert " ".join(segment.text for segment in verbose.segments or []) == plain.text


def test_openais_client_gets_its_own_errors(server: Server) -> None:
    create = server.client().audio.transcriptions.create
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        server.client("wrong-key").audio.transcriptions.create(model=NAME, file=("a.wav", wav(1.0)))
    with pytest.raises(openai.APIStatusError, match="larger than 25 MB") as large:
        create(model=NAME, file=("a.wav", bytes(30 * 2**20)))
    assert large.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="the file is empty"):
        create(model=NAME, file=("a.wav", b""))
    with pytest.raises(openai.BadRequestError, match="can't be used as audio"):
        create(model=NAME, file=("a.wav", b"no audio at all\n" * 100))
    with pytest.raises(openai.NotFoundError, match="no such model"):
        create(model="whisper-1", file=("a.wav", wav(1.0)))


def test_no_request_is_lost_with_a_replica(server: Server) -> None:
    """The only one is killed; requests wait for its successor."""
    files = [(wav(30.0, seed), DEPTHS[seed % 4]) for seed in range(8)]
    before = [text_of(server, data, depth) for data, depth in files]
    (killed,) = server.replicas()
    with ThreadPoolExecutor(len(files)) as pool:
        answers = [pool.submit(text_of, server, data, depth) for data, depth in files]
        time.sleep(0.1)
        os.kill(killed, signal.SIGKILL)
        assert [answer.result() for answer in answers] == before
    assert server.replicas() != [killed]


def test_sigterm_answers_what_was_accepted(server: Server) -> None:
    files = [wav(60.0, seed) for seed in range(6)]
    before = text_of(server, files[0])
    metrics = f"http://127.0.0.1:{server.port}/metrics"
    accepted = lambda: httpx.get(metrics, headers={"authorization": f"Bearer {KEY}"}).text  # noqa: E731
    with ThreadPoolExecutor(len(files)) as pool:
        answers = [pool.submit(text_of, server, data) for data in files]
        while "foldray_requests_in_progress 6.0" not in accepted():
            assert not any(answer.done() for answer in answers)
        server.process.terminate()
        assert answers[0].result() == before
        assert all(answer.result() for answer in answers)
    assert server.process.wait(60) == 0
    with pytest.raises(openai.APIConnectionError):
        text_of(server, files[0])
    log = server.log.read_text()
    assert "stopped; every accepted request was answered" in log
    assert KEY not in log
    assert not server.replicas()
