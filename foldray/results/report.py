"""The report: one self-contained HTML page of a store, readable offline."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader

from foldray import storage
from foldray.errors import UserError
from foldray.results import plots
from foldray.results.comparison import Said, compare_hypotheses, said_by_place
from foldray.results.metrics import read_metrics
from foldray.results.query import list_rows
from foldray.results.run_section import cost_of, section_of
from foldray.results.searches import Search, figure, importances, read_searches
from foldray.storage.layout import Store

Row = dict[str, Any]
Place = tuple[str, str]

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
    target = storage.join(storage.absolute(out) if out else Store(store).report, "index.html")
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
    metrics = {run_id: read_metrics(Store(store).run(run_id).uri) for run_id in shown}
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
        costs=[cost_of(run_id, runs[run_id], metrics[run_id]) for run_id in shown],
        left_out=len(runs) - len(shown),
        sections=[
            section_of(
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
