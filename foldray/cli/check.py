"""The verb `doctor`."""

import os
from typing import Annotated

import typer

from foldray.cli.options import DEFAULT_STORE, Json, Overrides
from foldray.config.recipes import load_recipe
from foldray.errors import UserError
from foldray.runtime.terminal import counting, print_json, print_status, print_table


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe whose model, corpus and workers are checked too.")
    ] = None,
    overrides: Overrides = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", help="The store to check if no recipe is given; default: $FOLDRAY_STORE or ./foldray-store."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check packages, Ray, every node's devices, storage and audio decoding; say how to fix what fails.

    Exits 1 if a check fails.

    Example: foldray doctor an4 corpus.path=/data/an4 storage.root=s3://bucket/store
    """
    from foldray.cli.doctor import run_checks

    if recipe and store:
        raise UserError("--store", "applies only without a recipe; set storage.root=… instead")
    spec = load_recipe(recipe, overrides) if recipe else None
    root = store or (spec.storage.root if spec else os.environ.get("FOLDRAY_STORE", DEFAULT_STORE))
    checks = []
    with counting("checking") as on_progress:
        for check in run_checks(spec, root):
            checks.append(check)
            on_progress(len(checks), len(checks) + 1)
    if as_json:
        print_json({"ok": all(check.ok for check in checks), "checks": [vars(check) for check in checks]})
    else:
        rows = [[check.name, check.where, "ok" if check.ok else "FIX", check.found] for check in checks]
        print_table("", ["check", "node", "", "found"], rows)
        for check in checks:
            if not check.ok:
                print_status(f"{check.name}{f' on {check.where}' if check.where else ''}: {check.fix}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
