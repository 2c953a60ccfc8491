"""What the report says of one run: its line of costs, and its section with curves, examples and provenance."""

import json
from collections.abc import Sequence
from typing import Any

from foldray import storage
from foldray.results import plots
from foldray.results.alignment import aligned_words
from foldray.results.comparison import Said
from foldray.results.metrics import Record
from foldray.storage.layout import Store

Row = dict[str, Any]

EXAMPLES = 10


def cost_of(run_id: str, rows: list[Row], metrics: Sequence[Record]) -> dict[str, str]:
    """A line of the table of costs, by its columns."""
    row = rows[-1]
    audio = sum(record["audio_seconds"] for record in metrics)
    padding = sum(record["padding"] * record["audio_seconds"] for record in metrics) / audio if audio else 0.0
    speed = row["train_audio_seconds"] / row["train_seconds"] if row["train_seconds"] else 0.0
    return {
        "run": run_id,
        "training": f"{row['train_seconds']:,.0f} s",
        "steps": f"{row['step']:,}",
        "audio, repeats counted": f"{row['train_audio_seconds'] / 3600:.1f} h",
        "audio s/s": f"{speed:.0f}",
        "padding": f"{padding:.1%}",
        "stored": f"{row['bytes_stored'] / 1e6:.1f} MB",
        "MMACs/s": " / ".join(f"{each['macs_per_audio_second'] / 1e6:,.0f}" for each in _once(rows)),
        "RTFx": " / ".join(f"{each['rtfx']:.0f}" for each in _once(rows)),
        "peak memory of scoring": f"{max(each['peak_rss_bytes'] for each in rows) / 2**20:,.0f} MiB",
    }


def _once(rows: list[Row]) -> list[Row]:
    """One row of every depth, by depth."""
    return [by_depth for _, by_depth in sorted({row["depth"]: row for row in rows}.items())]


def section_of(store: str, run_id: str, rows: list[Row], metrics: list[Record], said: Said) -> dict[str, Any]:
    """What the template shows of a run. rows: with the comparison made of each; said: by depth and utterance."""
    run = Store(store).run(run_id)
    facts = _read(run.facts)
    row = rows[-1]
    return {
        "run_id": run_id,
        "rows": rows,
        "curves": plots.as_html(plots.training_figure(metrics), f"curves-{run_id}") if metrics else "",
        "examples": _examples(said),
        "provenance": {
            **{
                name: row[name]
                for name in ("recipe", "family", "private", "order", "alpha", "beta", "seed", "device", "precision")
            },
            "spec hash": row["spec_hash"],
            "git commit": row["git_commit"] or "none",
            "scored": row["created"],
            **{f"run.{name}": value for name, value in facts.items() if name not in ("versions", "git_commit")},
            **json.loads(row["versions"] or "{}"),
        },
        "spec": json.dumps(_read(run.spec), indent=1),
    }


def _read(file: str) -> Any:
    """A JSON file; an empty mapping where a model came from elsewhere and there is none."""
    return storage.read_json(file) if storage.exists(file) else {}


def _examples(said: Said) -> list[dict[str, Any]]:
    """Ten utterances, every depth aligned with the reference: half of them the worst at the deepest, half the best,
    since a page of nothing but errors would mislead."""
    if not said:
        return []
    deepest = said[max(said)]
    ranked = sorted(deepest, key=lambda i: (-sum(deepest[i]["alignment"].count(step) for step in "SDI"), i))
    half = EXAMPLES // 2
    chosen = ranked if len(ranked) <= EXAMPLES else [*ranked[:half], *ranked[-half:]]
    return [
        {
            "id": i,
            "reference": deepest[i]["reference"],
            "depths": [
                (depth, aligned_words(by_id[i]["reference"], by_id[i]["hypothesis"], by_id[i]["alignment"]))
                for depth, by_id in sorted(said.items())
                if i in by_id
            ],
        }
        for i in chosen
    ]
