"""One run in the report: its line in the table of costs, and its section with curves, examples and provenance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from foldray import storage
from foldray.errors import DamagedFileError
from foldray.results import plots
from foldray.results.alignment import aligned_words
from foldray.results.auto_depth import AutoDepth, has_auto
from foldray.results.comparison import HypothesesByDepth
from foldray.results.metrics import Record
from foldray.results.rows import ResultRow
from foldray.storage.layout import Run, Store
from foldray.storage.records import check_as, read_as

EXAMPLES = 10
PROVENANCE = ("recipe", "family", "private", "order", "alpha", "beta", "seed", "device", "precision")


def cost_line(run_id: str, rows: Sequence[ResultRow], metrics: Sequence[Record]) -> dict[str, str]:
    """What a run cost, by the columns of the table."""
    row = rows[-1]
    audio = sum(record.get("audio_seconds", 0.0) for record in metrics)
    padding = (
        sum(record.get("padding", 0.0) * record.get("audio_seconds", 0.0) for record in metrics) / audio
        if audio
        else 0.0
    )
    speed = row["train_audio_seconds"] / row["train_seconds"] if row["train_seconds"] else 0.0
    depths = [by_depth for _, by_depth in sorted({row["depth"]: row for row in rows}.items())]
    return {
        "run": run_id,
        "training": f"{row['train_seconds']:,.0f} s",
        "steps": f"{row['step']:,}",
        "audio with repetitions": f"{row['train_audio_seconds'] / 3600:.1f} h",
        "audio s/s": f"{speed:.0f}",
        "padding": f"{padding:.1%}",
        "stored": f"{row['bytes_stored'] / 1e6:.1f} MB",
        "MMACs/s": " / ".join(f"{each['macs_per_audio_second'] / 1e6:,.0f}" for each in depths),
        "RTFx": " / ".join(f"{each['rtfx']:.0f}" for each in depths),
        "peak memory of scoring": f"{max(each['peak_rss_bytes'] for each in rows) / 2**20:,.0f} MiB",
    }


def run_section(
    store: str,
    run_id: str,
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[Record],
    hypotheses: HypothesesByDepth,
) -> dict[str, Any]:
    """The section of a run for the template. rows: result rows with the comparison of each as `pair`."""
    run = Store(store).run(run_id)
    facts = _read_json(run.facts)
    row = rows[-1]
    return {
        "run_id": run_id,
        "rows": rows,
        "curves": plots.as_html(plots.training_figure(metrics), f"curves-{run_id}") if metrics else "",
        "auto": _auto(run),
        "examples": _examples(hypotheses),
        "provenance": {
            **{name: row[name] for name in PROVENANCE},
            "spec hash": row["spec_hash"],
            "git commit": row["git_commit"] or "none",
            "scored": row["created"],
            **{f"run.{name}": value for name, value in facts.items() if name not in ("versions", "git_commit")},
            **_versions(row["versions"], run_id),
        },
        "spec": json.dumps(_read_json(run.spec), indent=1),
    }


def _auto(run: Run) -> str:
    """The curve of `--depth auto`, if the run's model was calibrated."""
    if not has_auto(run.model.uri):
        return ""
    auto = read_as(AutoDepth, run.model.auto)
    points = [asdict(point) for point in auto.curve]
    return plots.as_html(plots.auto_figure(points, asdict(auto.deepest)), f"auto-{run.run_id}")


def _versions(text: str, run_id: str) -> dict[str, str]:
    where = f"the result rows of {run_id}"
    return check_as(dict[str, str], storage.parse_json(text or "{}", where), where)


def _read_json(file: str) -> Any:
    """A JSON file; empty if the model comes from elsewhere and has none."""
    value = storage.read_json(file) if storage.exists(file) else {}
    if not isinstance(value, dict):
        raise DamagedFileError(file, "is damaged (no JSON object); move it away")
    return value


def _examples(hypotheses: HypothesesByDepth) -> list[dict[str, Any]]:
    """Ten utterances, aligned with the reference at every depth: the worst five and the best five at the deepest,
    since errors alone would mislead."""
    if not hypotheses:
        return []
    deepest = hypotheses[max(hypotheses)]
    ranked = sorted(deepest, key=lambda i: (-sum(deepest[i]["alignment"].count(step) for step in "SDI"), i))
    half = EXAMPLES // 2
    chosen = ranked if len(ranked) <= EXAMPLES else [*ranked[:half], *ranked[-half:]]
    return [
        {
            "id": i,
            "reference": deepest[i]["reference"],
            "depths": [
                (depth, aligned_words(by_id[i]["reference"], by_id[i]["hypothesis"], by_id[i]["alignment"]))
                for depth, by_id in sorted(hypotheses.items())
                if i in by_id
            ],
        }
        for i in chosen
    ]
