"""Verbs for a trained model: evaluate, transcribe, export."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from foldray.cli.options import DEFAULT_STORE, Decoding, Json, Model, Store
from foldray.cli.tables import result_table
from foldray.errors import UserError
from foldray.runtime.terminal import output, print_json, print_status, print_table


def evaluate(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(help="A prepared or raw corpus; default: that of the model's run, if it is in the store."),
    ] = None,
    depths: Annotated[
        str | None, typer.Option(help="Depths to score, such as 6,12, trained or not; default: all trained.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to score.")] = "test",
    decoding: Decoding = "ctc",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Score a model at every depth and add the rows to the store.

    Example: foldray evaluate an4-1a2b3c4d5e --data ./my-corpus --depths 6,12
    """
    from foldray.stages.evaluate import evaluate_stage

    with _option("--depths"):
        scored = evaluate_stage(model, store, data, _depths(depths), split, decoding)
    if as_json:
        print_json(scored)
    else:
        result_table(scored["rows"])


def _depths(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError("--depths", f"'{text}' is not a list of numbers such as 6,12") from None


@contextmanager
def _option(name: str) -> Iterator[None]:
    """Report errors about `depth`, the argument of the Python API, as errors about this option."""
    try:
        yield
    except UserError as error:
        raise UserError(name if error.where == "depth" else error.where, error.problem) from None


def transcribe(
    model: Model,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Audio files.")],
    depth: Annotated[int | None, typer.Option(help="The depth to run; default: the deepest.")] = None,
    decoding: Decoding = "ctc",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Transcribe audio files.

    Example: foldray transcribe an4-1a2b3c4d5e hello.wav --depth 6
    """
    from foldray.stages.transcribe import transcribe_stage

    with _option("--depth"):
        texts = transcribe_stage(model, store, files, depth, decoding)
    if as_json:
        print_json({"texts": texts})
    for entry in texts:
        if "error" in entry:
            print_status(f"{entry['file']}: {entry['error']}")
        elif not as_json:
            output.print(f"{entry['file']}: {entry['text'] or '(nothing)'}", markup=False, soft_wrap=True)
    if any("error" in entry for entry in texts):
        raise typer.Exit(2)


def export(
    model: Model,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="seed: the fold, which stock transformers opens as its shallowest depth; unrolled: one depth as a "
            "stock model (a hybrid conformer needs foldray to open it); onnx: the CTC logits of one depth; int8: the "
            "fold with one byte per weight.",
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="A new folder, or s3://bucket/prefix.")],
    depth: Annotated[
        int | None, typer.Option(help="The depth of an unrolled or onnx export; default: the deepest.")
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a model to deploy. An exported seed or int8 fold is a MODEL for evaluate and transcribe.

    Example: foldray export an4-1a2b3c4d5e --format unrolled --depth 6 -o ./an4-6
    """
    from foldray.stages.export import export_model

    with _option("--depth"):
        exported = export_model(model, store, kind, out, depth)
    if as_json:
        print_json(exported)
        return
    print_table("", ["file", "bytes"], [[name, f"{size:,}"] for name, size in exported["files"].items()])
    output.print(f"{exported['model']}: depth {', '.join(map(str, exported['depths']))}", markup=False, soft_wrap=True)
