"""Draw docs/fold.png: three stored blocks unfolded to 6 and 12, and WER by depth from the rows in docs/an4.

    python docs/figure.py

Needs the extra `test` (playwright) and a Chromium on PATH; plotly draws, Chromium takes the picture.
"""

import shutil
from pathlib import Path

import duckdb
import plotly.graph_objects as go
from playwright.sync_api import sync_playwright
from plotly.subplots import make_subplots

DOCS = Path(__file__).parent
BLOCKS = ("#2563a8", "#d9822b", "#2e8b57")
FOLDS = {"an4-fold-3-12": ("#2563a8", "3 stored blocks"), "an4-fold-6-12": ("#8a3ffc", "6 stored blocks")}
ROWS = f"""
    WITH newest AS (
        SELECT recipe, kind, seed, depth, trained, arg_max(wer, created) AS wer, any_value(params_stored) AS params
        FROM read_parquet('{DOCS}/an4/results/*.parquet', union_by_name = true)
        WHERE num_words = 773 AND split = 'test' AND precision = 'float32' AND "order" = 'in_place'
            AND private = 'none' AND created > '2026-11-26T06'  -- with the settings of docs/RESULTS.md
        GROUP BY ALL
    )
    SELECT recipe, depth, any_value(trained), 100 * avg(wer), count(*), any_value(params) / 1e6,
        100 * (max(wer) - avg(wer)), 100 * (avg(wer) - min(wer))
    FROM newest
    WHERE recipe IN ('an4-fold-3-12', 'an4-fold-6-12') OR (kind = 'baseline' AND recipe = 'an4-' || depth)
    GROUP BY recipe, depth ORDER BY recipe, depth
"""


def draw_blocks(figure: go.Figure) -> None:
    """Draw the stored blocks and two of their paths as columns of coloured boxes."""
    columns = {0.0: (1, "3 stored"), 1.3: (2, "depth 6"), 2.6: (4, "depth 12")}
    for left, (uses, title) in columns.items():
        path = [layer for layer in range(3) for _ in range(uses)]
        for position, layer in enumerate(path):
            box = {"x0": left, "x1": left + 0.9, "y0": position + 0.06, "y1": position + 0.94}
            figure.add_shape(type="rect", **box, fillcolor=BLOCKS[layer], line_width=0, row=1, col=1)
            label = {"x": left + 0.45, "y": position + 0.5, "text": str(layer), "showarrow": False}
            figure.add_annotation(**label, font={"color": "white", "size": 13}, row=1, col=1)
        figure.add_annotation(x=left + 0.45, y=len(path) + 0.5, text=title, showarrow=False, row=1, col=1)
    figure.update_xaxes(visible=False, range=[-0.2, 3.7], row=1, col=1)
    figure.update_yaxes(visible=False, range=[0, 13.2], row=1, col=1)


def draw_rates(figure: go.Figure) -> None:
    """Draw WER by depth: folds as lines (hollow where a depth was not trained), baselines as diamonds."""
    rows = duckdb.sql(ROWS).fetchall()
    alone = [row for row in rows if row[0] not in FOLDS]
    _, depths, _, wers, _, params, above, below = zip(*sorted(alone, key=lambda row: row[1]), strict=True)
    name = f"a model for each depth, {min(params):.2f} to {max(params):.2f} M"
    marker = {"symbol": "diamond", "size": 17, "color": "#b6bcc6"}
    seeds = {"type": "data", "array": above, "arrayminus": below, "thickness": 1.5}
    figure.add_scatter(x=depths, y=wers, name=name, mode="markers", marker=marker, error_y=seeds, row=1, col=2)
    for recipe, (colour, label) in FOLDS.items():
        _, depths, trained, wers, counts, params, above, below = zip(
            *[row for row in rows if row[0] == recipe], strict=True
        )
        name = f"one fold, {label}, {params[0]:.2f} M" + (f" ({counts[0]} seeds)" if counts[0] > 1 else "")
        symbols = ["circle" if each else "circle-open" for each in trained]
        marker = {"symbol": symbols, "size": 10, "color": colour, "line_width": 2}
        seeds = {"type": "data", "array": above, "arrayminus": below, "thickness": 1.5}
        style = {"mode": "lines+markers", "line_color": colour, "marker": marker, "error_y": seeds}
        figure.add_scatter(x=depths, y=wers, name=name, **style, row=1, col=2)
    figure.update_xaxes(title="depth (hollow: not trained at it)", tickvals=[3, 4, 6, 8, 9, 10, 12], row=1, col=2)
    figure.update_yaxes(title="WER, %", range=[6, 16], row=1, col=2)


def main() -> None:
    titles = ("Share the blocks", "WER on the AN4 test split, 773 words")
    figure = make_subplots(1, 2, column_widths=[0.36, 0.64], subplot_titles=titles, horizontal_spacing=0.08)
    draw_blocks(figure)
    draw_rates(figure)
    legend = {"x": 0.98, "y": 0.99, "xanchor": "right", "yanchor": "top", "bgcolor": "rgba(255,255,255,0.8)"}
    margin = {"l": 20, "r": 20, "t": 50, "b": 50}
    figure.update_layout(template="plotly_white", font_size=15, legend=legend, margin=margin, width=1100, height=430)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 430}, device_scale_factor=1.5)
        page.set_content(figure.to_html(config={"staticPlot": True}))
        page.locator(".plotly-graph-div").screenshot(path=DOCS / "fold.png")
        browser.close()


if __name__ == "__main__":
    main()
