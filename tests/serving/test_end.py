"""How a server ends: what it accepted is answered, or counted as cut off."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from foldray.serving import server
from foldray.serving.address import listen


@pytest.mark.parametrize(
    ("signals", "limit", "cut_off"),
    [((signal.SIGTERM,), 60, 0), ((signal.SIGTERM,), 0.2, 2), ((signal.SIGINT, signal.SIGINT), 60, 2)],
)
def test_the_end_counts_accepted_requests_that_it_cuts_off(
    signals: tuple[int, ...], limit: float, cut_off: int, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(server, "LARGEST_DRAIN", limit)
    accepted, released = threading.Semaphore(0), threading.Event()

    async def app(_scope: Any, _receive: Any, send: Callable[[dict[str, Any]], Any]) -> None:
        accepted.release()
        while not released.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"answer"})

    def stop() -> None:
        accepted.acquire()
        accepted.acquire()
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.3)  # two pending signals are one
        if not cut_off:
            released.set()

    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(httpx.get, url, timeout=30) for _ in range(2)]
        pool.submit(stop)
        assert server._serve_http(app, listener, lambda: None) == cut_off
        assert [client.result().status_code for client in clients] == [503 if cut_off else 200] * 2
    assert "Traceback" not in caplog.text
