"""Plots of the report: result rows, metrics and trials of a store."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from foldray.results.metrics import CURVES, Record
from foldray.results.query import OBJECTIVES, non_dominated
from foldray.results.rows import ResultRow
from foldray.results.searches import TrialRecord

COSTS = {
    "bytes": ("stored MB", 1e6),
    "macs": ("GMACs per second of audio", 1e9),
    "rtfx": ("RTFx, seconds of audio per second", 1.0),
}
"""The costs that WER is plotted against: an objective, the title of its axis, and the unit of the axis."""
DASHES = ("solid", "dash", "dot", "dashdot")
"""Line styles of folds: the next one after each ten folds, because plotly has ten colours."""
COLOURS = {"fold": "#2563a8", "baseline": "#b5651d"}


def auto_figure(points: Sequence[Mapping[str, float]], deepest: Mapping[str, float]) -> go.Figure:
    """Plot WER on the validation set against the MACs that `--depth auto` saves, one point for each threshold."""
    saved = [100 * (1 - each["macs_per_audio_second"] / deepest["macs_per_audio_second"]) for each in points]
    figure = go.Figure()
    figure.add_scatter(
        x=saved,
        y=[100 * each["wer"] for each in points],
        customdata=[each["threshold"] for each in points],
        mode="lines+markers",
        name="auto",
        hovertemplate="threshold %{customdata:.3f}<br>%{x:.1f} % MACs saved, %{y:.2f} % WER<extra></extra>",
    )
    figure.add_scatter(x=[0.0], y=[100 * deepest["wer"]], mode="markers", name="deepest", marker={"size": 11})
    figure.update_layout(xaxis_title="MACs saved, %", yaxis_title="WER on the validation set, %")
    return figure


def pareto_figure(rows: Sequence[ResultRow]) -> go.Figure:
    """Plot WER against one of COSTS, chosen by buttons: the rows of one test set and their Pareto front."""
    figure = go.Figure()
    for cost, (_, unit) in COSTS.items():
        column, sense = OBJECTIVES[cost]
        shown = cost == next(iter(COSTS))
        for kind, colour in COLOURS.items():
            members = [row for row in rows if row["kind"] == kind]
            figure.add_scatter(
                x=[row[column] / unit for row in members],
                y=[100 * row["wer"] for row in members],
                customdata=[[row["run_id"], row["depth"], row["path"], row["private"]] for row in members],
                mode="markers",
                marker={"color": colour, "size": 9},
                name=kind,
                visible=shown,
                hovertemplate="%{customdata[0]}<br>depth %{customdata[1]}, path %{customdata[2]}, private "
                "%{customdata[3]}<br>%{x:.4g}, %{y:.2f} % WER<extra></extra>",
            )
        points_NO = np.array([[sense * row[column], row["wer"]] for row in rows]).reshape(-1, 2)
        front = sorted({(sense * x, y) for x, y in points_NO[non_dominated(points_NO)].tolist()})
        figure.add_scatter(
            x=[x / unit for x, _ in front],
            y=[100 * y for _, y in front],
            mode="lines",
            line={"color": "#5b6675", "dash": "dot"},
            name="Pareto front",
            visible=shown,
            hoverinfo="skip",
        )
    traces = len(COLOURS) + 1
    buttons = [
        {
            "label": cost,
            "method": "update",
            "args": [
                {"visible": [number // traces == i for number in range(traces * len(COSTS))]},
                {"xaxis.title.text": title},
            ],
        }
        for i, (cost, (title, _)) in enumerate(COSTS.items())
    ]
    figure.update_layout(
        xaxis_title=next(iter(COSTS.values()))[0],
        yaxis_title="WER, %",
        updatemenus=[
            {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "y": 1.15, "xanchor": "left"}
        ],
    )
    return figure


def depth_figure(
    folds: Mapping[str, Sequence[ResultRow]], baselines: Sequence[ResultRow], marks: Mapping[tuple[str, int], str]
) -> go.Figure:
    """Plot WER by depth: a line for each fold, hollow at depths that were not trained, a diamond for each baseline.

    marks: texts next to points, by run and depth.
    """
    figure = go.Figure()
    for number, (run_id, rows) in enumerate(folds.items()):
        figure.add_scatter(
            line_dash=DASHES[number // 10 % len(DASHES)],
            x=[row["depth"] for row in rows],
            y=[100 * row["wer"] for row in rows],
            text=[marks.get((run_id, row["depth"]), "") for row in rows],
            customdata=[[row["path"]] for row in rows],
            mode="lines+markers+text",
            marker={"symbol": ["circle" if row["trained"] else "circle-open" for row in rows], "size": 8},
            textposition="top center",
            name=run_id,
            hovertemplate="depth %{x}: %{y:.2f} % WER %{text}<br>path %{customdata[0]}",
        )
    if baselines:
        figure.add_scatter(
            x=[row["depth"] for row in baselines],
            y=[100 * row["wer"] for row in baselines],
            customdata=[[row["run_id"]] for row in baselines],
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": COLOURS["baseline"]},
            name="trained by itself",
            hovertemplate="depth %{x}: %{y:.2f} % WER<br>%{customdata[0]}",
        )
    figure.update_layout(xaxis_title="logical depth", yaxis_title="WER, %", yaxis_rangemode="tozero")
    figure.update_xaxes(dtick=1)
    return figure


def training_figure(metrics: Sequence[Record]) -> go.Figure:
    """Plot each part of the loss at each depth over the training steps."""
    figure = go.Figure()
    for part, (title, dash) in CURVES.items():
        for depth in sorted({depth for record in metrics for depth in record.get(part, {})}, key=int):
            points = [(record["step"], record[part][depth]) for record in metrics if depth in record.get(part, {})]
            values = [value for _, value in points]
            if any(values):
                figure.add_scatter(
                    x=[step for step, _ in points],
                    y=values if part.startswith("valid_") else _smooth(values),
                    mode="lines+markers" if part.startswith("valid_") else "lines",
                    line_dash=dash,
                    name=f"{title}, depth {depth}",
                )
    figure.update_layout(
        xaxis_title="step", yaxis_title="loss per label; KL and hidden states per frame", yaxis_type="log"
    )
    return figure


def history_figure(trials: Sequence[TrialRecord], objective: str) -> go.Figure:
    """Plot an objective of each trial in order, and the best so far of the finished ones."""
    figure = go.Figure()
    scale = 100 if objective.startswith(("wer", "cer")) else 1
    for state, symbol in (("finished", "circle"), ("stopped", "x")):
        members = [trial for trial in trials if trial.state == state and objective in trial.objectives]
        figure.add_scatter(
            x=[trial.number for trial in members],
            y=[scale * trial.objectives[objective] for trial in members],
            customdata=[[" ".join(trial.overrides), trial.run_id] for trial in members],
            mode="markers",
            marker={"symbol": symbol, "size": 10},
            name=state,
            hovertemplate="trial %{x}: %{y:.4g}<br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    done = [trial for trial in trials if trial.state == "finished" and objective in trial.objectives]
    best = np.minimum.accumulate([scale * trial.objectives[objective] for trial in done])
    figure.add_scatter(
        x=[trial.number for trial in done], y=best.tolist(), mode="lines", line_shape="hv", name="best so far"
    )
    figure.update_layout(xaxis_title="trial", yaxis_title=f"{objective}{', %' if scale == 100 else ''} (validation)")
    figure.update_xaxes(dtick=1)
    return figure


def importance_figure(importances: Mapping[str, float], objective: str) -> go.Figure:
    """Plot the importance of each field for an objective."""
    figure = go.Figure(go.Bar(x=list(importances.values()), y=list(importances), orientation="h"))
    figure.update_layout(xaxis_title=f"importance for {objective}", yaxis_autorange="reversed")
    return figure


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average over about twenty steps."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else 0.95 * smoothed[-1] + 0.05 * value)
    return smoothed


def as_html(figure: go.Figure, name: str) -> str:
    """A figure as HTML for a page that already contains plotly.js."""
    top = 50 if figure.layout.updatemenus else 10
    figure.update_layout(
        template="plotly_white", margin={"l": 50, "r": 10, "t": top, "b": 40}, height=360,
        legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
    config = {"responsive": True, "displaylogo": False}
    # Plotly does not escape the id, and names of runs come from whoever can write to the store.
    plain = re.sub(r"[^\w-]", "-", name)
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=plain, config=config))
