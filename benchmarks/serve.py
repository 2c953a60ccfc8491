"""`python -m benchmarks serve`: requests of mixed depths over HTTP, against all at the deepest, and separate models.

Half of the requests are for the seed, a quarter each for the two deeper depths. The sides: one fold whose batches mix
depths; the same with every request at the deepest; a model for each depth by itself, three replicas on the same cores.
Replicas have one thread each, and the fold has one for each core.
Then a latency budget under twice the load that the deepest depth carries. HTTP and clients run in this process,
replicas in Ray's.
"""

import asyncio
import io
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import soundfile
import torch

from benchmarks.measure import BenchmarkResult, Figures
from foldray.config.corpus import SAMPLE_RATE
from foldray.config.model import ModelSpec
from foldray.folding.plan import FoldPlan
from foldray.models.costs import costs_of
from foldray.models.families import FAMILIES
from foldray.models.fold import fold
from foldray.models.save_load import save_model
from foldray.models.stock import initialise
from foldray.models.stock_config import stock_config
from foldray.models.tokenizer import Tokenizer
from foldray.runtime.ray import start_ray

DEPTHS = (4, 8, 12)
SHARES = (4, 4, 8, 12)
"""A request's depth is one of these, in turn."""
WIDTH, CLIENTS = 256, 16
LATENCY, LOADED_SECONDS = 1.5, 20.0
"""The budget of a model of that width, and how long the load lasts; both grow with the model."""
Address = tuple[str, str]
"""URL and model name."""


def bench_serve(
    rounds: int = 2,
    requests: int = 192,
    width: int = WIDTH,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchmarkResult:
    """Requests per second and latencies of the sides, and how many times faster mixed depths are.

    Args:
        rounds: How often each side answers all requests, in turn.
        requests: Requests of a round.
        width: Width of the model. What a request costs beside the model stays the same.
        on_progress: Called with rounds done and all rounds.
    """
    clips = [(_clip(i), SHARES[i % len(SHARES)]) for i in range(requests)]
    slower = (width / WIDTH) ** 2
    latency = LATENCY * slower
    with tempfile.TemporaryDirectory() as folder:
        allowed = _save_models(folder, width)
        copies = torch.get_num_threads()
        with _serving({"fold": f"{folder}/fold"}, copies) as urls:
            fold_at: dict[int, Address] = {depth: (urls["fold"], f"fold@{depth}") for depth in DEPTHS}
            deepest_at: dict[int, Address] = dict.fromkeys(DEPTHS, (urls["fold"], f"fold@{DEPTHS[-1]}"))
            sides = _rounds({"mixed": fold_at, "deepest": deepest_at}, clips, rounds, on_progress)
        with _serving({f"d{depth}": f"{folder}/d{depth}" for depth in DEPTHS}) as urls:
            own: dict[int, Address] = {depth: (urls[f"d{depth}"], f"d{depth}") for depth in DEPTHS}
            sides |= _rounds({"separate": own}, clips, rounds, on_progress)
        with _serving({"fold": f"{folder}/fold"}, copies, latency) as urls:
            rate = 2 * sides["deepest"]["requests_per_second"]
            budget = asyncio.run(
                _under_load((urls["fold"], "fold"), clips, rate, latency, LOADED_SECONDS * max(1.0, slower / 2))
            )
    ratio = {
        f"mixed to {peer}": sides["mixed"]["requests_per_second"] / sides[peer]["requests_per_second"]
        for peer in ("deepest", "separate")
    }
    return {
        "name": "serve",
        "ours": {"mixed": sides["mixed"], f"budget of {latency:g} s at twice the load": budget},
        "peer": {"deepest": sides["deepest"], "separate": sides["separate"]},
        "ratio": {**ratio, "mixed to deepest, by MACs": allowed},
        "shape": f"conformer of width {width}, {DEPTHS[0]} -> {DEPTHS}, cycle, noise of 2 to 8 s, "
        f"{CLIENTS} clients on loopback, {requests} requests, {rounds} rounds, {copies} replicas of a thread",
    }


def _clip(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    samples = draw.normal(0, 0.1, int(draw.uniform(2, 8) * SAMPLE_RATE)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV")
    return file.getvalue()


def _save_models(folder: str, width: int) -> float:
    """Save the fold and a model for each depth; returns the speed-up that MACs allow."""
    config = {
        "hidden_size": width, "num_attention_heads": 4, "intermediate_size": 4 * width, "conv_kernel_size": 15,
        "subsampling_conv_channels": 32, "decoder_layers": 1, "decoder_ffn_dim": width,
    }  # fmt: skip
    tokenizer = Tokenizer(["<pad>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"])
    plans = {"fold": FoldPlan(DEPTHS[0], DEPTHS, order="cycle")}
    plans |= {f"d{depth}": FoldPlan(depth, (depth,)) for depth in DEPTHS}
    spec = ModelSpec(family="conformer", config=config)
    macs: list[float] = []
    for name, plan in plans.items():
        torch.manual_seed(0)
        model = FAMILIES["conformer"].model_class(stock_config(spec, plan.num_layers, len(tokenizer)))
        initialise(model)
        folded = fold(model, plan).eval()
        save_model(folded, f"{folder}/{name}", tokenizer)
        macs = macs or [cost.macs_per_audio_second for cost in costs_of(folded)]
    by_depth = dict(zip(DEPTHS, macs, strict=True))
    return by_depth[DEPTHS[-1]] / statistics.mean(by_depth[depth] for depth in SHARES)


@contextmanager
def _serving(models: dict[str, str], copies: int = 1, latency: float | None = None) -> Iterator[dict[str, str]]:
    """Serve models side by side in one Ray, each by replicas of one thread; yields their URLs by name."""
    import uvicorn
    from ray import serve

    from foldray.serving.app import build_app
    from foldray.serving.deploy import ReplicaOptions, ServeBackend, api_options, replicas

    ray = start_ray(min_cpus=copies * len(models))
    servers: list[uvicorn.Server] = []
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        for name, folder in models.items():
            bound = replicas(ReplicaOptions(folder, latency=latency), copies)
            backend = ServeBackend(serve.run(bound, name=name, route_prefix=None))
            app = build_app(backend, api_options(asyncio.run(backend.facts()), name, None, latency, None))
            servers.append(uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off")))

        async def run() -> None:
            await asyncio.gather(*(server.serve() for server in servers))

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        while not all(server.started for server in servers):
            time.sleep(0.05)
        ports = [server.servers[0].sockets[0].getsockname()[1] for server in servers]
        yield {name: f"http://127.0.0.1:{port}" for name, port in zip(models, ports, strict=True)}
    finally:
        for server in servers:
            server.should_exit = True
        if servers:
            thread.join()
        ray.shutdown()


def _rounds(
    sides: dict[str, dict[int, Address]],
    clips: Sequence[tuple[bytes, int]],
    rounds: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, Figures]:
    """Figures of sides that take turns; a first, short round warms up."""
    latencies: dict[str, list[float]] = {name: [] for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    for turn in range(rounds + 1):
        for number, (name, addresses) in enumerate(sides.items()):
            began = time.perf_counter()
            found = asyncio.run(_all(addresses, clips if turn else clips[:CLIENTS]))
            if turn:
                seconds[name] += time.perf_counter() - began
                latencies[name] += found
            on_progress(turn * len(sides) + number + 1, (rounds + 1) * len(sides))
    return {name: _figures(latencies[name], seconds[name]) for name in sides}


def _figures(latencies: Sequence[float], seconds: float) -> Figures:
    ranked = sorted(latencies)
    return {
        "requests_per_second": len(ranked) / seconds,
        "p50_seconds": ranked[len(ranked) // 2],
        "p95_seconds": ranked[int(0.95 * len(ranked))],
    }


async def _all(addresses: dict[int, Address], clips: Sequence[tuple[bytes, int]]) -> list[float]:
    """Latencies of all clips, sent by CLIENTS clients that wait for each answer."""
    queue = list(clips)
    latencies: list[float] = []
    async with httpx.AsyncClient(timeout=600) as client:

        async def work() -> None:
            while queue:
                data, depth = queue.pop()
                began = time.perf_counter()
                await _post(client, addresses[depth], data)
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(work() for _ in range(CLIENTS)))
    return latencies


async def _under_load(
    address: Address, clips: Sequence[tuple[bytes, int]], rate: float, latency: float, loaded: float
) -> Figures:
    """Share of answers within the budget, and the mean depth, at so many requests per second that arrive at random.

    A request that a full queue turns away (503) is counted by itself.
    """
    draw = random.Random(0)
    answers: list[tuple[float, int]] = []
    refused = 0
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:

        async def one(data: bytes) -> None:
            nonlocal refused
            began = time.perf_counter()
            try:
                answer = await _post(client, address, data)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 503:
                    raise
                refused += 1
                return
            answers.append((time.perf_counter() - began, answer["depth"]))

        tasks = []
        began = time.perf_counter()
        while time.perf_counter() - began < loaded:
            tasks.append(asyncio.create_task(one(draw.choice(clips)[0])))
            await asyncio.sleep(draw.expovariate(rate))
        await asyncio.gather(*tasks)
    return {
        **_figures([seconds for seconds, _ in answers], loaded),
        "offered_per_second": rate,
        "share_refused": refused / len(tasks),
        "share_in_time": statistics.mean(seconds <= latency for seconds, _ in answers),
        "mean_depth": statistics.mean(depth for _, depth in answers),
    }


async def _post(client: httpx.AsyncClient, address: Address, data: bytes) -> dict[str, Any]:
    url, model = address
    files = {"file": ("a.wav", data)}
    response = await client.post(f"{url}/v1/audio/transcriptions", data={"model": model}, files=files)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer
