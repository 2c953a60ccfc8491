"""The verb `calibrate`: the threshold of `--depth auto`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from foldray.cli.options import DEFAULT_STORE, Json, Model, Store
from foldray.runtime.terminal import print_json, print_line, print_status, print_table

if TYPE_CHECKING:
    from foldray.results.auto_depth import AutoPoint

SHOWN = 8


def calibrate(
    model: Model,
    data: Annotated[
        str | None, typer.Option(help="A prepared or raw corpus; default: that of the model's run.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to choose the threshold on.")] = "valid",
    check: Annotated[str, typer.Option(help="A split to show the result on.")] = "test",
    loss: Annotated[
        float, typer.Option(help="Points of WER above the deepest depth's that are allowed, by the upper 95 % bound.")
    ] = 0.3,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Choose when `--depth auto` stops, and write it into the model's folder.

    Example: foldray calibrate an4-1a2b3c4d5e --loss 0.3
    """
    from foldray.stages.calibrate import calibrate_stage

    done = calibrate_stage(model, store, data, split, check, loss / 100)
    auto, deepest, checked = done["auto"], done["deepest"], done["check"]
    if as_json:
        found = {"auto": asdict(auto) if auto else None, "deepest": asdict(deepest)}
        other = {"split": checked[0], "auto": asdict(checked[1]), "deepest": asdict(checked[2])} if checked else None
        print_json({"model": done["model"], **found, "check": other})
        return
    if auto is None:
        print_line(
            f"no threshold saves MACs and is surely within {loss:g} points of WER of the deepest depth; nothing was "
            "written. Allow more with --loss, or calibrate on more utterances with --data and --split"
        )
        return
    step = max(1, len(auto.curve) // SHOWN)
    shown = [*auto.curve[::step], auto.chosen]
    rows = [_row(point, deepest, point.threshold == auto.threshold) for point in sorted(shown, key=_by_cost)]
    columns = ["threshold", *(f"stop at {depth}" for depth in auto.depths), "MMACs/s of audio", "saved", "WER", ""]
    print_table("", columns, list(dict.fromkeys(map(tuple, rows))))
    print_line(_sentence(f"{auto.split} ({auto.utterances} utterances)", auto.chosen, deepest))
    if checked:
        print_line(_sentence(*checked))
    print_status(f"written   {done['model']}/auto.json")


def _by_cost(point: "AutoPoint") -> float:
    return point.macs_per_audio_second


def _row(point: "AutoPoint", deepest: "AutoPoint", chosen: bool) -> list[str]:
    return [
        f"{point.threshold:.4f}",
        *(f"{share:.0%}" for share in point.shares),
        f"{point.macs_per_audio_second / 1e6:,.0f}",
        f"{_saved(point, deepest):.1%}",
        f"{point.wer:.2%}",
        "chosen" if chosen else "",
    ]


def _saved(point: "AutoPoint", deepest: "AutoPoint") -> float:
    return 1 - point.macs_per_audio_second / deepest.macs_per_audio_second


def _sentence(split: str, point: "AutoPoint", deepest: "AutoPoint") -> str:
    saved = f"{_saved(point, deepest):.1%} fewer MACs"
    return f"{split}: auto {point.wer:.2%} WER with {saved}, the deepest depth {deepest.wer:.2%}"
