"""The HTTP API over a real model, without Ray: formats, errors, keys, metrics."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from foldray.data.recording import decode_recording
from foldray.results.auto_depth import AutoDepth, AutoPoint, write_auto
from foldray.serving.app import ApiOptions, build_app
from foldray.serving.budget import Costs, Load
from foldray.serving.engine import CHUNKS_AHEAD, Engine
from foldray.serving.messages import Answer, Ask, Refusal
from foldray.serving.names import ServedNames
from foldray.transcription.files import Recording, transcribe
from foldray.transcription.formats import written
from foldray.transcription.recogniser import Recogniser
from foldray.transcription.transcript import Transcript
from tests.support.served import DEPTHS, save_talkative, silence, wav

KEY = "k" * 24
PATH = "/v1/audio/transcriptions"


class Local:
    """Calls an engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ready = engine, True

    async def transcribe(self, data: bytes, ask: Ask) -> Answer | Refusal:
        answer = await self.engine.transcribe(data, ask)
        # A request is answered before its batch ends, and until then no other thread may run the model, as tests do.
        await asyncio.get_running_loop().run_in_executor(self.engine._scheduler._thread, lambda: None)
        return answer

    async def is_ready(self) -> bool:
        return self.ready


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Recogniser:
    return Recogniser(save_talkative(tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="module", autouse=True)
def _loop_ends() -> Iterator[None]:
    yield
    for task in asyncio.all_tasks(LOOP):
        task.cancel()
    LOOP.run_until_complete(asyncio.sleep(0))
    LOOP.close()


@pytest.fixture
def backend(recogniser: Recogniser) -> Local:
    return Local(Engine(recogniser, costs=Costs(0.0, 0.0, 0.0)))


def app_of(backend: Local, key: str | None = None) -> Any:
    facts = backend.engine.facts()
    return build_app(
        backend, ApiOptions(ServedNames("tiny", facts.depths, facts.depths[-1], facts.has_auto), facts, key)
    )


LOOP = asyncio.new_event_loop()
"""One for all requests to an engine, as in a server."""


def call(app: Any, *requests: dict[str, Any], host: str = "localhost") -> list[httpx.Response]:
    """Responses to requests that are sent at the same time."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await asyncio.gather(*(client.request(**request) for request in requests))

    return LOOP.run_until_complete(send())


def post(data: bytes = b"", file: bool = True, **fields: Any) -> dict[str, Any]:
    files = {"file": ("a.wav", data)} if file else {"other": (None, "x")}
    return {"method": "POST", "url": PATH, "data": {"model": "tiny", **fields}, "files": files}


def raw(content: bytes, kind: str) -> dict[str, Any]:
    return {"method": "POST", "url": PATH, "content": content, "headers": {"content-type": kind}}


def expected(recogniser: Recogniser, data: bytes, depth: int) -> Transcript:
    recordings = [Recording("a", partial(decode_recording, data))]
    (_, found), *_ = transcribe(recogniser, recordings, depth, words=True)
    assert isinstance(found, Transcript)
    return found


def test_requests_of_all_depths_at_once_get_the_texts_of_transcribe(backend: Local, recogniser: Recogniser) -> None:
    files = [(wav(1.0 + 0.3 * seed, seed), DEPTHS[seed % 3]) for seed in range(6)] + [(wav(45.0, 7), 3)]
    found = call(app_of(backend), *(post(data, model=f"tiny@{depth}") for data, depth in files))
    texts = [expected(recogniser, data, depth).text for data, depth in files]
    assert [response.json()["text"] for response in found] == texts
    assert [response.headers["x-foldray-depth"] for response in found] == [str(depth) for _, depth in files]
    assert len({*texts}) == 7
    assert all(texts)


def test_auto_stops_each_recording_where_the_calibration_does(recogniser: Recogniser) -> None:
    files = [wav(1.0 + 0.3 * seed, seed) for seed in range(6)]
    sure = sorted(expected(recogniser, data, 2).confidence for data in files)
    point = AutoPoint(sure[3] - 1e-6, 1.0, 0.0, (0.5, 0.5))
    write_auto(recogniser.folder, AutoDepth((2, 4), point.threshold, 0.0, "c", "valid", 6, point, point, (point,)))
    try:
        app = app_of(Local(Engine(recogniser, costs=Costs(0.0, 0.0, 0.0))))
        found = call(app, *(post(data, model="tiny@auto") for data in files))
        recordings = [Recording(str(i), partial(decode_recording, data)) for i, data in enumerate(files)]
        alone = [known for recording in recordings for _, known in transcribe(recogniser, [recording], "auto")]
    finally:
        Path(recogniser.folder, "auto.json").unlink()
    known = [(each.text, each.depth) for each in alone if isinstance(each, Transcript)]
    assert [(response.json()["text"], response.json()["depth"]) for response in found] == known
    assert sorted(depth for _, depth in known) == [2, 2, 2, 4, 4, 4]


def test_an_upload_counts_as_load_only_until_it_waits_for_itself(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its later chunks come as fast as the model takes them, which is never too fast."""
    counted: list[float] = []
    monkeypatch.setattr(Load, "add", lambda _self, seconds, _now: counted.append(seconds))
    monkeypatch.setattr(Recogniser, "chunk_seconds", 4.0)
    data, engine = wav(45.0, 7), Engine(recogniser, costs=Costs(0.0, 0.0, 0.0), latency=0.3)
    (response,) = call(app_of(Local(engine)), post(data))
    known = expected(recogniser, data, response.json()["depth"])
    assert response.json()["text"] == known.text
    assert len(counted) == CHUNKS_AHEAD
    counted.clear()
    assert {each.status_code for each in call(app_of(Local(engine)), *[post(wav(2.0))] * 9)} == {200}
    assert counted == [2.0] * 9


def test_formats(backend: Local, recogniser: Recogniser) -> None:
    data = wav(8.0, 3)
    kinds = ("text", "srt", "vtt", "json", "verbose_json")
    text, srt, vtt, plain, verbose = call(app_of(backend), *(post(data, response_format=kind) for kind in kinds))
    known = expected(recogniser, data, 4)
    assert [text.text, srt.text, vtt.text] == [written("a", known, kind) for kind in ("text", "srt", "vtt")]
    assert plain.json() == {"text": known.text, "depth": 4, "confidence": pytest.approx(known.confidence, abs=1e-4)}
    assert {name: verbose.json()[name] for name in ("task", "duration", "text")} == {
        "task": "transcribe", "duration": 8.0, "text": known.text,
    }  # fmt: skip
    assert "words" not in verbose.json()
    assert " ".join(segment["text"] for segment in verbose.json()["segments"]) == known.text
    both = post(data, response_format="verbose_json", **{"timestamp_granularities[]": ["word", "segment"]})
    words = call(app_of(backend), both)[0].json()["words"]
    assert [(word["word"], word["start"]) for word in words] == [(w.text, round(w.start, 3)) for w in known.words]


FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n--\xff\r\n--b--\r\n'
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "empty file": (post(b""), 400, "empty_file"),
    "text as audio": (post(b"no audio at all\n" * 50), 400, "invalid_audio"),
    "cut off": (post(wav(1.0)[:9_000]), 400, "invalid_audio"),
    "too short": (post(wav(0.001)), 400, "invalid_audio"),
    "too large": (post(bytes(26 * 2**20 + 10)), 413, "too_large"),
    "no file": (post(file=False), 400, "unknown_field"),
    "no multipart": ({"method": "POST", "url": PATH, "json": {"model": "tiny"}}, 400, "invalid_content_type"),
    "no boundary": (raw(b"x", "multipart/form-data"), 400, "invalid_multipart"),
    "multipart without an end": (raw(b"--b\r\nnonsense", "multipart/form-data; boundary=b"), 400, "missing_file"),
    "empty boundary": (raw(b"x", "multipart/form-data; boundary="), 400, "invalid_multipart"),
    "charset undefined": (raw(FORM, "multipart/form-data; boundary=b; charset=undefined"), 400, "invalid_charset"),
    "charset punycode": (raw(FORM, "multipart/form-data; boundary=b; charset=punycode"), 400, "invalid_charset"),
    "charset unknown": (raw(FORM, "multipart/form-data; boundary=b; charset=x-own"), 400, "invalid_charset"),
    "charset utf-8": (raw(FORM, "multipart/form-data; boundary=b; charset=UTF-8"), 400, "missing_file"),
    "charset latin-1": (raw(FORM, 'multipart/form-data; charset="latin-1"; boundary=b'), 400, "missing_file"),
    "many fields": (post(wav(1.0), **{"timestamp_granularities[]": ["word"] * 40}), 400, "invalid_multipart"),
    "long field": (post(wav(1.0), prompt="x" * 100_000), 400, "invalid_multipart"),
    "unknown field": (post(wav(1.0), **{"include[]": "logprobs"}), 400, "unknown_field"),
    "unknown model": (post(wav(1.0), model="whisper-1"), 404, "model_not_found"),
    "unknown depth": (post(wav(1.0), model="tiny@5"), 404, "model_not_found"),
    "auto": (post(wav(1.0), model="tiny@auto"), 400, "not_calibrated"),
    "no model": (post(wav(1.0), model=""), 400, "missing_model"),
    "format": (post(wav(1.0), response_format="docx"), 400, "invalid_format"),
    "language": (post(wav(1.0), language="../de"), 400, "invalid_language"),
    "temperature": (post(wav(1.0), temperature="hot"), 400, "invalid_field"),
    "stream": (post(wav(1.0), stream="true"), 400, "unsupported"),
    "granularity": (post(wav(1.0), **{"timestamp_granularities[]": "word"}), 400, "invalid_field"),
    "path": ({"method": "GET", "url": "/v1/audio/speech"}, 404, "unknown_path"),
    "method": ({"method": "GET", "url": PATH}, 405, "wrong_method"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals_have_openais_form(name: str, backend: Local) -> None:
    request, status, code = REFUSED[name]
    (response,) = call(app_of(backend), request)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert "/tmp" not in error["message"]


def test_a_wrong_method_names_those_of_the_path(backend: Local) -> None:
    wrong = [{"method": "GET", "url": PATH}, {"method": "DELETE", "url": "/v1/models/tiny"}]
    get, delete = call(app_of(backend), *wrong)
    assert get.json()["error"]["message"] == "this path takes POST, but not GET"
    assert delete.json()["error"]["message"] == "this path takes GET, HEAD, but not DELETE"
    assert [get.headers["allow"], delete.headers["allow"]] == ["POST", "GET, HEAD"]


def test_fields_without_effect_are_named(backend: Local) -> None:
    (response,) = call(app_of(backend), post(wav(1.0), language="de", prompt="hello", temperature="0.5"))
    assert response.headers["x-foldray-ignored"] == "language, prompt, temperature"
    assert response.json()["ignored"] == ["language", "prompt", "temperature"]


def test_silence_has_an_empty_text(backend: Local) -> None:
    (response,) = call(app_of(backend), post(silence(2.0)))
    assert (response.status_code, response.json()["text"]) == (200, "")


def test_the_key_guards_all_but_health(backend: Local) -> None:
    app = app_of(backend, KEY)
    paths = ("/v1/models", "/v1/models/tiny", "/metrics", "/health")
    plain = [{"method": "GET", "url": path} for path in paths]
    wrong = {**post(wav(1.0)), "headers": {"authorization": f"Bearer {KEY[:-1]}x"}}
    found = call(app, *plain, wrong, host="example.org")
    assert [response.status_code for response in found] == [401, 401, 401, 200, 401]
    right = [{**request, "headers": {"authorization": f"Bearer {KEY}"}} for request in [*plain, post(wav(1.0))]]
    assert {response.status_code for response in call(app, *right, host="example.org")} == {200}


@pytest.mark.parametrize("given", [b"\xff\xfe", "schlüssel".encode(), KEY.encode() + b"\xff", b"\x80 " + KEY.encode()])
def test_a_key_of_other_bytes_is_a_wrong_key(given: bytes, backend: Local) -> None:
    request = {"method": "GET", "url": "/v1/models", "headers": {"authorization": b"Bearer " + given}}
    (response,) = call(app_of(backend, KEY), request)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


def test_without_a_key_only_names_of_this_machine_are_answered(backend: Local) -> None:
    models = {"method": "GET", "url": "/v1/models"}
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.0.0.2:8000", "[::1]:8000"):
        assert call(app_of(backend), models, host=host)[0].status_code == 200
    for host in ("example.org", "localhost.example.org", "127.0.0.1.example.org:8000"):
        assert call(app_of(backend), models, host=host)[0].json()["error"]["code"] == "forbidden_host"


def test_models_health_and_metrics(backend: Local) -> None:
    app = app_of(backend)
    assert call(app, post(wav(2.0), model="tiny@2"), post(b""))[0].status_code == 200
    models, one, health, metrics = call(
        app, *({"method": "GET", "url": url} for url in ("/v1/models", "/v1/models/tiny@3", "/health", "/metrics"))
    )
    rows = models.json()["data"]
    assert [(row["id"], row["depth"]) for row in rows] == [("tiny", 4), ("tiny@2", 2), ("tiny@3", 3), ("tiny@4", 4)]
    assert (one.json(), health.json()) == (rows[2], {"status": "ok"})
    lines = metrics.text.splitlines()
    assert 'foldray_requests_total{depth="2",outcome="ok"} 1.0' in lines
    assert 'foldray_requests_total{depth="",outcome="empty_file"} 1.0' in lines
    assert 'foldray_audio_seconds_total{depth="2"} 2.0' in lines
    assert "foldray_requests_in_progress 0.0" in lines
    backend.ready = False
    assert call(app, {"method": "GET", "url": "/health"})[0].status_code == 503


def test_a_failure_of_the_server_shows_nothing_of_it(backend: Local, capsys: pytest.CaptureFixture[str]) -> None:
    async def fail(_data: bytes, _ask: Ask) -> Answer | Refusal:
        raise RuntimeError("/secret/path")

    backend.transcribe = fail  # type: ignore[method-assign]
    (response,) = call(app_of(backend), post(wav(1.0)))
    assert response.json()["error"]["code"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in capsys.readouterr().err


def test_a_client_that_leaves_takes_its_clips_out_of_the_queue(backend: Local) -> None:
    cancelled = asyncio.Event()

    async def wait(_data: bytes, _ask: Ask) -> Answer | Refusal:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Refusal(500, "", "late")

    backend.transcribe = wait  # type: ignore[method-assign]
    request = httpx.Client(base_url="http://localhost").build_request(**post(wav(1.0)))
    body = request.read()
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    asyncio.run(asyncio.wait_for(app_of(backend)(scope, receive, send), 10))
    assert cancelled.is_set()
