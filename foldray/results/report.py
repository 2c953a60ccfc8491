"""The report: one self-contained HTML page of a store, readable offline."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader

from foldray import storage
from foldray.errors import UserError
from foldray.results import plots
from foldray.results.alignment import aligned_words
from foldray.results.comparison import Said, compare_hypotheses, said_by_place
from foldray.results.metrics import Record, read_metrics
from foldray.results.query import list_rows
from foldray.results.searches import Search, figure, importances, read_searches

Row = dict[str, Any]
Place = tuple[str, str]

EXAMPLES = 10
SECTIONS = 12
"""Runs that get a section of their own, the newest; the plots and the cost table hold all."""


def write_report(store: str, out: str | None = None, filters: Sequence[str] = ()) -> str:
    """Write `index.html` to a folder or URI (default: the store's `report`). Returns where it is.

    filters: of the rows that the page is made of, as `list_rows` takes them. Raises UserError for a store without
    results, or without any that the filters let through.
    """
    there = storage.is_folder(storage.absolute(store))
    rows = list_rows(store, ["decoding=ctc", *filters], "created")[0] if there else []
    if not rows:
        without = (
            f"that {' '.join(filters)} lets through" if filters else "to report; `foldray run quickstart` makes some"
        )
        raise UserError(store, f"has no results {without}")
    target = storage.join(
        storage.absolute(out) if out else storage.join(storage.absolute(store), "report"), "index.html"
    )
    storage.write_bytes(target, _page(storage.absolute(store), rows).encode())
    return target


def _page(store: str, rows: list[Row]) -> str:
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["depth"])):
        runs[row["run_id"]].append(row)
    place = rows[-1]["corpus"], rows[-1]["split"]
    scored = {run_id: found for run_id, members in runs.items() if (found := _at(members, place))}
    here = {run_id: [row for row in members if row["trained"]] or members for run_id, members in scored.items()}
    best = min(
        here, key=lambda run_id: (_is_small(here[run_id]), here[run_id][-1]["kind"] != "fold", here[run_id][-1]["wer"])
    )
    # Newest first; the best, which the page begins with, in any case.
    newest = sorted(runs, key=lambda run_id: max(row["created"] for row in runs[run_id]), reverse=True)
    shown = [best, *(run_id for run_id in newest if run_id != best)][:SECTIONS]
    said = {
        run_id: said_by_place(store, run_id).get((*place, "ctc"), {})
        for run_id in {*shown, *(rows[0]["run_id"] for rows in here.values() if rows[0]["kind"] == "baseline")}
    }
    against = {run_id: _against_baselines(run_id, here, said) for run_id in shown if run_id in here}
    marks = {
        (run_id, depth): "*" if pair["significant"] else ""
        for run_id, pairs in against.items()
        for depth, pair in pairs.items()
    }
    folds = {run_id: rows for run_id, rows in scored.items() if rows[0]["kind"] == "fold" and not _is_small(rows)}
    alone = [row for members in here.values() for row in members if row["kind"] == "baseline"]
    metrics = {run_id: read_metrics(storage.join(store, "runs", run_id)) for run_id in shown}
    environment = Environment(loader=PackageLoader("foldray.results", "templates"), autoescape=True)
    return environment.get_template("report.html").render(
        p_text=p_text,
        figure=figure,
        # The plot library goes in once, inline: the page must work without a network.
        plotly=plotly.offline.get_plotlyjs(),
        place=" ".join(place),
        best=best,
        headline=_headline(here[best]),
        verdicts=_verdicts(best, against.get(best, {}), here, len(folds)),
        pareto=plots.as_html(plots.pareto_figure([row for members in here.values() for row in members]), "pareto"),
        depths=plots.as_html(plots.depth_figure(folds, alone, marks), "depths"),
        marked=any(marks.values()),
        untrained=any(not row["trained"] for rows in folds.values() for row in rows),
        searches=[_search(search) for search in read_searches(store)],
        costs=[_cost(run_id, runs[run_id], metrics[run_id]) for run_id in shown],
        left_out=len(runs) - len(shown),
        sections=[
            _section(
                store,
                run_id,
                _paired(runs[run_id], scored.get(run_id, []), against.get(run_id, {})),
                metrics[run_id],
                said[run_id],
            )
            for run_id in shown
        ],
    )


def _at(rows: Sequence[Row], place: Place) -> list[Row]:
    """The rows on one test set, of the last step scored."""
    here = [row for row in rows if (row["corpus"], row["split"]) == place]
    newest = max((row["step"] for row in here), default=0)
    return [row for row in here if row["step"] == newest]


def _is_small(rows: list[Row]) -> bool:
    """Whether this is another model's export with weights of one byte, which is no training of its own."""
    return bool(rows[0]["precision"] == "int8")


def _baselines(here: dict[str, list[Row]], family: str) -> dict[int, str]:
    """The newest run of each depth trained by itself, of a family."""
    alone = [
        rows[0]
        for rows in here.values()
        if (rows[0]["kind"], rows[0]["family"]) == ("baseline", family) and not _is_small(rows)
    ]
    return {row["depth"]: row["run_id"] for row in sorted(alone, key=lambda row: str(row["created"]))}


def _against_baselines(run_id: str, here: dict[str, list[Row]], said: dict[str, Said]) -> dict[int, Row]:
    """Each depth of a fold compared with the model of that depth trained by itself, where there is one that was scored
    on the same utterances."""
    if here[run_id][0]["kind"] == "baseline":
        return {}
    found = {}
    for depth, baseline in _baselines(here, here[run_id][0]["family"]).items():
        ours, theirs = said[run_id].get(depth), said[baseline].get(depth)
        if ours and theirs and ours.keys() == theirs.keys():
            found[depth] = {**compare_hypotheses([(ours, theirs)], f"{run_id} and {baseline}"), "baseline": baseline}
    return found


def _headline(rows: list[Row]) -> str:
    """One sentence: what one file saves and what each depth of it scores."""
    deepest = rows[-1]
    saved = 1 - deepest["params_stored"] / deepest["params_unrolled"]
    scores = ", ".join(f"{row['wer']:.1%} at depth {row['depth']}" for row in rows)
    return (
        f"One file of {deepest['params_stored'] / 1e6:.2f} M parameters ({deepest['bytes_stored'] / 1e6:.1f} MB) "
        f"serves every depth, {saved:.1%} less than an unshared model of depth {deepest['depth']}. WER: {scores}."
    )


def _paired(rows: Sequence[Row], compared: Sequence[Row], against: dict[int, Row]) -> list[Row]:
    """Rows with the comparison that was made of them: on one test set, of the last step."""
    return [{**each, "pair": against.get(each["depth"]) if each in compared else None} for each in rows]


def _verdicts(best: str, against: dict[int, Row], here: dict[str, list[Row]], folds: int) -> list[str]:
    """What the saving costs, depth by depth, and whether that is more than chance."""
    verdicts = [
        f"Depth {depth}: {pair['difference']:+.2%} WER against {pair['baseline']}, trained by itself "
        f"({pair['wer_a']:.2%} and {pair['wer_b']:.2%}; 95 % interval {pair['low']:+.2%} to {pair['high']:+.2%}, "
        f"MAPSSWE {p_text(pair['p_value'])}): {'significant' if pair['significant'] else 'not significant'}. "
        f"Trained on {_hours(here[pair['baseline']])} of audio, repeats counted, the fold on {_hours(here[best])}."
        for depth, pair in sorted(against.items())
    ]
    if not verdicts:
        verdicts.append("No model of one of these depths trained by itself was scored here, to hold it against.")
    if folds > 1:
        verdicts.append(
            f"This fold is the best of {folds} on this very test set, by its deepest path: it would do a little worse "
            "on another one, and no p-value here is corrected for that choice."
        )
    return verdicts


def _hours(rows: list[Row]) -> str:
    return f"{rows[0]['train_audio_seconds'] / 3600:.1f} h"


def p_text(p_value: float) -> str:
    """A p-value as people read it."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _search(search: Search) -> dict[str, Any]:
    """History and importance for every objective that has figures."""
    figures = []
    trials = [trial for trial in search.trials if trial.kind == "trial"]
    for objective in search.objectives:
        name = f"{search.search_id}-{objective}"
        figures.append(plots.as_html(plots.history_figure(trials, objective), f"history-{name}"))
        weights = importances(search, objective)
        if weights:
            figures.append(plots.as_html(plots.importance_figure(weights, objective), f"importance-{name}"))
    return {"search_id": search.search_id, "trials": search.trials, "objectives": search.objectives, "figures": figures}


def _cost(run_id: str, rows: list[Row], metrics: Sequence[Record]) -> dict[str, str]:
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


def _section(store: str, run_id: str, rows: list[Row], metrics: list[Record], said: Said) -> dict[str, Any]:
    run = storage.join(store, "runs", run_id)
    facts = _read(storage.join(run, "run.json"))
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
        "spec": json.dumps(_read(storage.join(run, "spec.json")), indent=1),
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
