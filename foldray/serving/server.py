"""`foldray serve`: replicas on Ray Serve, HTTP in this process, and an end that loses no request.

HTTP runs here and not in Serve's proxies: an upload is copied once less, two processes fewer share a small machine, and
SIGTERM reaches the process that knows which requests are in progress.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldray.errors import UserError
from foldray.runtime.extras import check_extra
from foldray.runtime.ray import node_resources, owns_ray, start_ray
from foldray.runtime.terminal import print_status
from foldray.serving.address import is_loopback, listen
from foldray.serving.keys import KEY, api_key
from foldray.serving.messages import Refusal
from foldray.serving.names import check_name

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LARGEST_DRAIN = 600
"""Seconds that the requests in progress get to be answered after SIGTERM or Ctrl-C."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line asks for.

    Attributes:
        uri: The model folder.
        name: The model's name in requests.
        host, port: Where to listen; port 0 takes a free one.
        depth: The depth of the bare name; the deepest by default.
        depths: The depths that are served; empty for all planned ones.
        latency: Budget in seconds for requests that name no depth.
        replicas: Copies of the model.
        threads: Threads of each; None shares the cores of this machine, up to those of the largest node.
        gpu: Whether each replica has a GPU.
    """

    uri: str
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    depth: int | None = None
    depths: tuple[int, ...] = ()
    latency: float | None = None
    replicas: int = 1
    threads: int | None = None
    gpu: bool = False


def serve_model(options: ServeOptions, on_ready: Callable[[str, tuple[int, ...]], None]) -> int:
    """Serve a model until SIGTERM or Ctrl-C; requests that were accepted are answered first.

    A second Ctrl-C ends it at once, and so do LARGEST_DRAIN seconds.

    Args:
        options: What to serve.
        on_ready: Called with the URL and the depths when requests are answered.

    Returns:
        How many requests were accepted and cut off.

    Raises:
        UserError: An option is wrong, the address can't be had, no node has what a replica needs, or the model does
            not load.
    """
    check_extra("serve", "grpc_reflection", "python_multipart", "uvicorn", where="serve", what="serving")
    key = _checked_key(options)
    check_name(options.name)
    if options.depth is not None and options.latency is not None:
        raise UserError("--latency", "chooses the depth itself; leave out --depth, or --latency")
    with listen(options.host, options.port) as listener:
        share = max(1, (os.cpu_count() or 1) // options.replicas)
        ray = start_ray(min_cpus=options.replicas * (options.threads or share))
        try:
            threads = check_room(node_resources(ray), options, share)
            return _run(options, threads, key, listener, on_ready)
        finally:
            ray.shutdown()


def check_room(nodes: Sequence[Mapping[str, float]], options: ServeOptions, share: int) -> int:
    """Choose the threads of each replica so that a node has room for it: Serve waits for one without limit or word.

    Args:
        nodes: The resources of each node.
        options: What the command line asks for.
        share: Threads where the command line names none and a node is large enough.

    Raises:
        UserError: No node has a GPU, or so many CPUs.
    """
    workers = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not workers:  # a cluster at rest, whose autoscaler starts nodes as they are asked for, as in cluster/aws.yaml
        print_status("waiting for nodes: none of this Ray has a CPU now")
        return options.threads or share
    fitting = [node for node in workers if not options.gpu or node.get("GPU", 0) >= 1]
    if not fitting:
        raise UserError("--gpu", "no node of this Ray has a GPU; leave it out")
    largest = int(max(node["CPU"] for node in fitting))
    threads = options.threads or min(share, largest)
    if threads > largest:
        kind = "largest node with a GPU" if options.gpu else "largest node"
        raise UserError("--threads", f"{threads} exceeds the {largest} CPUs of the {kind}; use fewer")
    room = sum(int(min(node["CPU"] // threads, node["GPU"] if options.gpu else math.inf)) for node in fitting)
    if room < options.replicas:
        print_status(f"waiting for nodes: this Ray has room for {room} of {options.replicas} replicas now")
    return threads


def _checked_key(options: ServeOptions) -> str | None:
    key = api_key()
    if key is None and not is_loopback(options.host):
        raise UserError("--host", f"{options.host} is reached from the network; set {KEY}, or use 127.0.0.1")
    return key


def _run(
    options: ServeOptions,
    threads: int,
    key: str | None,
    listener: socket.socket,
    on_ready: Callable[[str, tuple[int, ...]], None],
) -> int:
    from ray import serve

    from foldray.serving.app import build_app
    from foldray.serving.deploy import APPLICATION, ReplicaOptions, ServeBackend, api_options, replicas

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    device = "cuda" if options.gpu else "cpu"
    replica = ReplicaOptions(options.uri, options.depths, options.latency, threads, device)
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
    application = f"{APPLICATION}-{options.name}"
    try:
        bound = replicas(replica, options.replicas, 1.0 if options.gpu else 0.0)
        handle = serve.run(bound, name=application, route_prefix=None)
        backend = ServeBackend(handle)
        facts = asyncio.run(backend.facts())
        api = api_options(facts, options.name, options.depth, options.latency, key)
        address = listener.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        url = f"http://{host}:{address[1]}"
        return _serve_http(build_app(backend, api), listener, lambda: on_ready(url, facts.depths))
    finally:
        if not owns_ray():  # a Ray of our own ends with this process; a cluster may serve others
            serve.delete(application)


def _serve_http(app: "ASGIApp", listener: socket.socket, on_ready: Callable[[], None]) -> int:
    """Serve until SIGTERM or SIGINT. uvicorn then stops to accept, answers what it accepted, and raises it again.

    Returns the number of requests that it accepted and cut off.
    """
    import uvicorn

    from foldray.serving.app import error_response

    cut_off = 0

    async def counted(scope: "Scope", receive: "Receive", send: "Send") -> None:
        nonlocal cut_off
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            cut_off += 1
            with contextlib.suppress(RuntimeError):  # an answer that has begun
                await error_response(Refusal(503, "the server stops", "stopped"))(scope, receive, send)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # From Python 3.12 on uvicorn waits for open connections even after a second Ctrl-C.
            ending = asyncio.create_task(super().shutdown(sockets))
            while not (ending.done() or self.force_exit):
                await asyncio.wait([ending], timeout=0.1)
            if ending.done():
                ending.result()

    config = uvicorn.Config(
        counted, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=LARGEST_DRAIN,
        server_header=False, date_header=False,
    )  # fmt: skip
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        Server(config).run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return cut_off
