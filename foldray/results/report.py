"""The report: one self-contained HTML page of a store, readable offline."""

import json
from collections import defaultdict
from typing import Any

import plotly.graph_objects as go
import plotly.offline
from jinja2 import Environment, PackageLoader

from foldray import storage
from foldray.errors import UserError
from foldray.results.metrics import Record, read_metrics
from foldray.results.rows import newest_rows, read_hypotheses, read_rows

EXAMPLES = 10


def write_report(store: str, out: str | None = None) -> str:
    """Write `index.html` to a folder or URI (default: the store's `report`). Returns where it is.

    Raises UserError for a store without results.
    """
    rows = [row for row in newest_rows(read_rows(store)) if row["decoding"] == "ctc"]
    if not rows:
        raise UserError(store, "has no results to report; `foldray run quickstart` makes some")
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        runs[row["run_id"]].append(row)
    sections = [_section(store, run_id, members) for run_id, members in sorted(runs.items(), key=_age, reverse=True)]
    environment = Environment(loader=PackageLoader("foldray.results", "templates"), autoescape=True)
    # The plot library goes in once, inline: the page must work without a network.
    page = environment.get_template("report.html").render(
        sections=sections, plotly=plotly.offline.get_plotlyjs(), overview=_figure(_wer_by_depth(runs), "wer")
    )
    target = storage.join(
        storage.absolute(out) if out else storage.join(storage.absolute(store), "report"), "index.html"
    )
    storage.write_bytes(target, page.encode())
    return target


def _age(entry: tuple[str, list[dict[str, Any]]]) -> str:
    return max(str(row["created"]) for row in entry[1])


def _section(store: str, run_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    run = storage.join(storage.absolute(store), "runs", run_id)
    metrics = read_metrics(run)
    ordered = sorted(rows, key=lambda row: (row["corpus"], row["split"], row["depth"]))
    return {
        "run_id": run_id,
        "rows": ordered,
        "headline": _headline(ordered),
        "curves": _figure(_training_curves(metrics), f"curves-{run_id}") if metrics else "",
        "cost": _cost(ordered[0], metrics),
        "examples": _examples(read_hypotheses(store, run_id), ordered),
        "provenance": json.loads(ordered[0]["versions"] or "{}"),
    }


def _headline(rows: list[dict[str, Any]]) -> str:
    """One sentence: what one file saves and what each depth of it scores."""
    place = (rows[0]["corpus"], rows[0]["split"])
    here = [row for row in rows if (row["corpus"], row["split"]) == place]
    first = [row for row in here if row["trained"]] or here
    deepest = first[-1]
    saved = 1 - deepest["params_stored"] / deepest["params_unrolled"]
    scores = ", ".join(f"{row['wer']:.1%} at depth {row['depth']}" for row in first)
    return (
        f"One file of {deepest['params_stored'] / 1e6:.2f} M parameters ({deepest['bytes_stored'] / 1e6:.1f} MB) "
        f"serves every depth, {saved:.1%} less than an unshared model of depth {deepest['depth']}. WER: {scores}."
    )


def _cost(row: dict[str, Any], metrics: list[Record]) -> list[tuple[str, str]]:
    padding = sum(r["padding"] * r["audio_seconds"] for r in metrics) / max(
        1e-9, sum(r["audio_seconds"] for r in metrics)
    )
    return [
        ("training time", f"{row['train_seconds'] / 60:.1f} min over {row['step']:,} steps"),
        ("audio trained on", f"{row['train_audio_seconds'] / 3600:.1f} h, repeats counted"),
        (
            "training speed",
            f"{row['train_audio_seconds'] / max(1e-9, row['train_seconds']):.0f} audio seconds per second",
        ),
        ("padding", f"{padding:.1%} of the audio in batches"),
        ("stored weights", f"{row['bytes_stored'] / 1e6:.1f} MB"),
        ("peak memory of scoring", f"{max(row['peak_rss_bytes'], 0) / 2**20:.0f} MiB"),
        ("recipe, seed", f"{row['recipe']}, {row['seed']}"),
        ("spec hash, git commit", f"{row['spec_hash']}, {row['git_commit'][:12] or 'none'}"),
    ]


def _examples(hypotheses: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ten utterances with every depth's text: those with most errors at the deepest, then by id."""
    deepest = rows[-1]
    place = (deepest["corpus"], deepest["split"])
    by_id: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for entry in sorted(hypotheses, key=lambda entry: str(entry["created"])):
        if (entry["corpus"], entry["split"], entry["decoding"]) == (*place, "ctc"):
            by_id[entry["id"]][entry["depth"]] = entry
    ranked = sorted(by_id.items(), key=lambda item: (-_errors(item[1].get(deepest["depth"])), item[0]))
    # Half of them the worst, half right or nearly: a page of nothing but errors would mislead.
    half = EXAMPLES // 2
    chosen = ranked if len(ranked) <= EXAMPLES else [*ranked[:half], *ranked[-half:]]
    return [
        {"id": i, "reference": next(iter(depths.values()))["reference"], "depths": sorted(depths.items())}
        for i, depths in chosen
    ]


def _errors(entry: dict[str, Any] | None) -> int:
    return entry["substitutions"] + entry["deletions"] + entry["insertions"] if entry else 0


def _wer_by_depth(runs: dict[str, list[dict[str, Any]]]) -> go.Figure:
    figure = go.Figure()
    for run_id, rows in runs.items():
        for place in sorted({(row["corpus"], row["split"]) for row in rows}):
            points = sorted((r for r in rows if (r["corpus"], r["split"]) == place), key=lambda row: row["depth"])
            figure.add_scatter(
                x=[row["depth"] for row in points],
                y=[100 * row["wer"] for row in points],
                text=[row["path"] for row in points],
                mode="lines+markers",
                name=run_id if len(runs) > 1 else f"{place[0]} {place[1]}",
                hovertemplate="depth %{x}: %{y:.1f} % WER<br>path %{text}",
            )
    figure.update_layout(xaxis_title="logical depth", yaxis_title="WER, %", yaxis_rangemode="tozero")
    figure.update_xaxes(dtick=1)
    return figure


def _training_curves(metrics: list[Record]) -> go.Figure:
    """Every part of the loss for every depth, over the steps that ran it."""
    figure = go.Figure()
    for part, (title, dash) in CURVES.items():
        for depth in sorted({depth for record in metrics for depth in record.get(part, {})}, key=int):
            points = [(r["step"], r[part][depth]) for r in metrics if depth in r.get(part, {})]
            values = [value for _, value in points]
            if any(values):
                figure.add_scatter(
                    x=[step for step, _ in points],
                    y=values if part == "valid_ctc" else _smooth(values),
                    mode="lines+markers" if part == "valid_ctc" else "lines",
                    line_dash=dash,
                    name=f"{title}, depth {depth}",
                )
    figure.update_layout(xaxis_title="step", yaxis_title="per label; KL and hidden per frame", yaxis_type="log")
    return figure


CURVES = {
    "ctc": ("CTC", "solid"),
    "attention": ("attention", "longdash"),
    "kl": ("KL", "dot"),
    "hidden": ("hidden states", "dashdot"),
    "valid_ctc": ("validation CTC", "dash"),
}


def _smooth(values: list[float]) -> list[float]:
    """Exponential average over about twenty steps."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else 0.95 * smoothed[-1] + 0.05 * value)
    return smoothed


def _figure(figure: go.Figure, name: str) -> str:
    figure.update_layout(
        template="plotly_white", margin={"l": 50, "r": 10, "t": 10, "b": 40}, height=360,
        legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            config={"responsive": True, "displaylogo": False},
        )
    )
