"""The verb `push`: a model as a page on the Hugging Face hub."""

from typing import TYPE_CHECKING, Annotated

import typer

from foldray.cli.options import DEFAULT_STORE, Json, Model, Store
from foldray.runtime.terminal import print_json, print_line, print_status, print_table

if TYPE_CHECKING:
    from foldray.stages.push import PushedModel


def push(
    model: Model,
    page: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The page on the hub; made if there is none.")],
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help="Write the page to this new folder instead; needs no token and no network."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--format", help="seed: the fold; int8: the fold with one byte per weight.")
    ] = "seed",
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            "--licence",
            help="The hub's name of the licence, such as apache-2.0; default: the base model's.",
        ),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SPLIT=]OWNER/NAME:TASK",
            help="The benchmark on the hub that a scored split is, for leaderboards; may be given several times.",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new page private.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write over a page that foldray did not write: its weights go, other files stay."),
    ] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Publish a model on the Hugging Face hub: weights, fold.json, a card with a row for each depth, provenance.

    Log in with `hf auth login`, or set HF_TOKEN. Pushing again replaces what foldray wrote, in one commit.

    Example: foldray push an4-1a2b3c4d5e my-org/an4-fold --license apache-2.0
    """
    from foldray.stages.push import push_model

    pushed = push_model(
        model, page, store, out=out, kind=kind, license_id=license_id, benchmarks=benchmark or (), private=private,
        force=force,
    )  # fmt: skip
    if as_json:
        print_json(pushed)
    else:
        _print_pushed(pushed)


def _print_pushed(pushed: "PushedModel") -> None:
    if not pushed["changed"]:
        print_line(f"{pushed['where']}: up to date at commit {pushed['commit'][:10]}, nothing was pushed")
        return
    print_table("", ["file", "bytes"], [[name, f"{size:,}"] for name, size in pushed["files"].items()])
    for name in pushed["deleted"]:
        print_status(f"deleted   {name}, of an earlier push")
    commit = f", commit {pushed['commit'][:10]}" if pushed["commit"] else ""
    depths = ", ".join(map(str, pushed["depths"]))
    print_line(f"{pushed['where']}: depth {depths}, {pushed['rows']} result rows, {pushed['license']}{commit}")
