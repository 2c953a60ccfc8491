"""Verbs for a trained model: evaluate, export."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from foldray.cli.options import (
    DEFAULT_STORE,
    Beam,
    Decoding,
    Hotwords,
    HotwordWeight,
    Json,
    Lm,
    LmWeight,
    Model,
    Store,
    WordBonus,
    Words,
)
from foldray.cli.tables import result_table
from foldray.errors import UserError
from foldray.runtime.terminal import print_json, print_line, print_table


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
    decoding: Decoding = None,
    lm: Lm = None,
    lm_weight: LmWeight = None,
    word_bonus: WordBonus = None,
    hotwords: Hotwords = None,
    hotword_weight: HotwordWeight = None,
    words: Words = None,
    beam: Beam = None,
    leaderboard: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Also write what the Open ASR Leaderboard scores: texts as they were written, RTFx and parameters.",
        ),
    ] = None,
    use_gpu: Annotated[bool, typer.Option("--use-gpu", help="Run on this machine's GPU.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Score a model at every depth and add the rows to the store.

    Example: foldray evaluate an4-1a2b3c4d5e --data ./my-corpus --depths 6,12
    """
    from foldray.evaluation.beam_options import beam_options
    from foldray.models.device import inference_device
    from foldray.stages.evaluate import evaluate_stage

    search = beam_options(beam, lm, lm_weight, word_bonus, hotwords, hotword_weight, words)
    with option("--depths"):
        chosen = parse_depths(depths, "--depths")
        device = inference_device(use_gpu)
        scored = evaluate_stage(model, store, data, chosen, split, decoding, search, leaderboard, device)
    if as_json:
        print_json(scored)
    else:
        result_table(scored["rows"])
        for file in scored.get("leaderboard", ()):
            print_line(file)


def parse_depths(text: str | None, name: str) -> tuple[int, ...]:
    """Depths as an option has them, () for none. Raises UserError naming the option."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(name, f"'{text}' is not a list of numbers such as 6,12") from None


@contextmanager
def option(name: str) -> Iterator[None]:
    """Report errors about `depth`, the argument of the Python API, as errors about this option."""
    try:
        yield
    except UserError as error:
        raise UserError(name if error.where == "depth" else error.where, error.problem) from None


def export(
    model: Model,
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="seed: the fold, which stock transformers opens as its shallowest depth; unrolled: one depth as a "
            "stock model (a hybrid conformer needs foldray to open it); onnx: the CTC logits of one depth; onnx-asr, "
            "sherpa-onnx: one depth as these runtimes read it; int8: the fold with one byte per weight.",
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="A new folder, or s3://bucket/prefix.")],
    depth: Annotated[
        int | None, typer.Option(help="The depth of all formats but seed and int8; default: the deepest.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, or int8 for int8 matrix products in onnx, onnx-asr and sherpa-onnx.")
    ] = "float32",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write a model to deploy. An exported seed or int8 fold is a MODEL for evaluate and transcribe.

    Example: foldray export an4-1a2b3c4d5e --format unrolled --depth 6 -o ./an4-6
    """
    from foldray.stages.export import export_model

    with option("--depth"):
        exported = export_model(model, store, kind, out, depth, precision)
    if as_json:
        print_json(exported)
        return
    print_table("", ["file", "bytes"], [[name, f"{size:,}"] for name, size in exported["files"].items()])
    print_line(f"{exported['model']}: depth {', '.join(map(str, exported['depths']))}")
