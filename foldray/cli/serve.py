"""The verb `serve`: a server with OpenAI's API for transcriptions."""

import re
from typing import Annotated

import typer

from foldray.cli.options import DEFAULT_STORE, Model, Store
from foldray.runtime.terminal import print_line, print_status


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need FOLDRAY_API_KEY.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name in requests; default: its run's or folder's.")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="The depth of the bare name; default: the deepest.")] = None,
    depths: Annotated[str | None, typer.Option(help="Depths to serve, such as 6,12; default: all trained.")] = None,
    latency: Annotated[
        str | None,
        typer.Option(help="Such as 300ms: the bare name means the deepest depth that answers in this time."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, max=1000, help="Copies of the model, on any nodes.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads of each copy; default: they share the cores.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Give each copy a GPU.")] = False,
    store: Store = DEFAULT_STORE,
) -> None:
    """Serve a model at all of its depths with OpenAI's API for transcriptions, on Ray Serve.

    Requests name the depth: NAME, or NAME@6. Ends at Ctrl-C or SIGTERM after the requests in progress, at a second
    Ctrl-C at once.

    Example: foldray serve an4-1a2b3c4d5e --port 8000
    """
    from foldray.cli.use import parse_depths
    from foldray.evaluation.provenance import find_model
    from foldray.serving.budget import parse_latency
    from foldray.serving.server import ServeOptions, serve_model

    found = find_model(model, store)
    chosen = name or re.sub(r"[^A-Za-z0-9._-]+", "-", found.name).strip("-._") or "foldray"
    limits = (depth, parse_depths(depths, "--depths"), parse_latency(latency, "--latency"))
    options = ServeOptions(found.uri, chosen, host, port, *limits, replicas, threads, gpu)

    def ready(url: str, served: tuple[int, ...]) -> None:
        print_line(f"{url}/v1 serves {chosen} at depth {', '.join(map(str, served))}")

    print_status("starting replicas")
    if cut_off := serve_model(options, ready):
        print_status(f"stopped; accepted requests that were cut off: {cut_off}")
        raise typer.Exit(1)
    print_status("stopped; every accepted request was answered")
