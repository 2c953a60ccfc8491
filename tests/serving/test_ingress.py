"""The application of a Serve config file, behind Serve's own proxy."""

from pathlib import Path

import httpx
import pytest

from foldray.errors import UserError
from foldray.runtime.ray import start_ray
from tests.support.ports import free_port
from tests.support.served import save_talkative, wav

KEY = "k" * 24


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.usefixtures("without_ray")
def test_serves_proxy_reaches_the_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    from foldray.serving.deploy import application

    args = {"model": save_talkative(tmp_path / "model"), "name": "tiny", "latency": "30"}
    monkeypatch.delenv("FOLDRAY_API_KEY", raising=False)
    with pytest.raises(UserError, match="FOLDRAY_API_KEY: is not set"):
        application(args)
    monkeypatch.setenv("FOLDRAY_API_KEY", KEY)
    port = free_port()
    ray = start_ray(min_cpus=2)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(args))
        request = {"data": {"model": "tiny"}, "files": {"file": ("a.wav", wav(3.0))}, "timeout": 120}
        url = f"http://127.0.0.1:{port}/v1/audio/transcriptions"
        assert httpx.post(url, **request).status_code == 401
        answer = httpx.post(url, **request, headers={"authorization": f"Bearer {KEY}"})
        assert (answer.status_code, answer.headers["x-foldray-depth"]) == (200, "4")
        assert answer.json()["text"]
    finally:
        serve.shutdown()
        ray.shutdown()
