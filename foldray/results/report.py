"""The report: one self-contained HTML page of a store, readable offline."""

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.offline
from jinja2 import Environment, PackageLoader

from foldray import storage
from foldray.errors import UserError
from foldray.results import plots
from foldray.results.comparison import HypothesesByDepth, TestSet, hypotheses_by_test_set
from foldray.results.metrics import read_metrics
from foldray.results.paired import Comparison, compare_hypotheses
from foldray.results.query import list_rows
from foldray.results.report_run import cost_line, run_section
from foldray.results.rows import ResultRow
from foldray.results.searches import Search, figure, importances, read_searches
from foldray.storage.layout import Store

RowsByRun = dict[str, list[ResultRow]]
"""Rows by run id, sorted by depth."""

SECTIONS = 12
"""The newest runs have a section each; the plots show all runs."""


class BaselineComparison(Comparison):
    """A depth of a fold compared with the run of that depth trained by itself."""

    baseline: str


def write_report(store: str, out: str | None = None, filters: Sequence[str] = ()) -> str:
    """Write `index.html` to a folder or URI (default: the store's `report`).

    Args:
        filters: which rows to report, as for `list_rows`.

    Returns:
        Where the page is.

    Raises:
        UserError: for a store without results, or without any that match the filters.
    """
    root = storage.absolute(store)
    rows = _usually_decoded(list_rows(store, filters, "created")[0]) if storage.is_folder(root) else []
    if not rows:
        problem = f"that match {' '.join(filters)}" if filters else "to report; `foldray run quickstart` creates some"
        raise UserError(store, f"has no results {problem}")
    test_set = _test_set(rows[-1])
    final = [row for row in list_rows(store, filters, "created", last_step=True)[0] if _test_set(row) == test_set]
    target = storage.join(storage.absolute(out) if out else Store(store).report, "index.html")
    storage.write_bytes(target, _page(root, _by_run(rows), _by_run(final), test_set).encode())
    return target


def _usually_decoded(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows by CTC, and those of runs without any, such as Whisper's."""
    by_ctc = {row["run_id"] for row in rows if row["decoding"] == "ctc"}
    return [row for row in rows if row["decoding"] == "ctc" or row["run_id"] not in by_ctc]


def _test_set(row: ResultRow) -> TestSet:
    return TestSet(row["corpus"], row["split"], row["decoding"])


def _by_run(rows: Sequence[ResultRow]) -> RowsByRun:
    runs: RowsByRun = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["depth"]):
        runs[row["run_id"]].append(row)
    return dict(runs)


def _page(store: str, runs: RowsByRun, final: RowsByRun, test_set: TestSet) -> str:
    """The page as HTML. runs: all rows; final: those that the plots compare, on one test set and of the last step."""
    decoding = "greedy CTC" if test_set.decoding == "ctc" else f"{test_set.decoding} decoding"
    trained = {run_id: [row for row in rows if row["trained"]] or rows for run_id, rows in final.items()}
    best = min(trained, key=lambda run_id: _rank(trained[run_id]))
    # The best run comes first, then the newest.
    newest = sorted(runs, key=lambda run_id: max(row["created"] for row in runs[run_id]), reverse=True)
    shown = [best, *(run_id for run_id in newest if run_id != best)][:SECTIONS]
    hypotheses = {
        run_id: hypotheses_by_test_set(store, run_id).get(test_set, {})
        for run_id in {*shown, *(run_id for run_id, rows in trained.items() if rows[0]["kind"] == "baseline")}
    }
    compared = {run_id: _against_baselines(run_id, trained, hypotheses) for run_id in shown if run_id in trained}
    marks = {
        (run_id, depth): "*" if pair["significant"] else ""
        for run_id, pairs in compared.items()
        for depth, pair in pairs.items()
    }
    folds = {run_id: rows for run_id, rows in final.items() if rows[0]["kind"] == "fold" and not _is_int8(rows)}
    alone = [row for rows in trained.values() for row in rows if row["kind"] == "baseline"]
    metrics = {run_id: read_metrics(Store(store).run(run_id).uri) for run_id in shown}
    searches = [_search(search) for search in read_searches(store)]
    pareto = plots.as_html(plots.pareto_figure([row for rows in trained.values() for row in rows]), "pareto")
    depths = plots.as_html(plots.depth_figure(folds, alone, marks), "depths")
    sections = [
        run_section(
            store,
            run_id,
            _paired(runs[run_id], final.get(run_id, []), compared.get(run_id, {})),
            metrics[run_id],
            hypotheses[run_id],
        )
        for run_id in shown
    ]
    figures = [pareto, depths, *(each["curves"] for each in sections), *(f for s in searches for f in s["figures"])]
    return _render(
        figures,
        test_set=f"{test_set.corpus} {test_set.split}, {decoding}",
        best=best,
        headline=_headline(trained[best]),
        verdicts=_verdicts(best, compared.get(best, {}), trained, len(folds)),
        pareto=pareto,
        depths=depths,
        marked=any(marks.values()),
        untrained=any(not row["trained"] for rows in folds.values() for row in rows),
        searches=searches,
        costs=[cost_line(run_id, runs[run_id], metrics[run_id]) for run_id in shown],
        left_out=len(runs) - len(shown),
        sections=sections,
    )


def _render(figures: Sequence[str], **values: object) -> str:
    """Fill in the template. figures: the values that hold scripts."""
    # The plot library is inlined once: the page must work without a network.
    library = plotly.offline.get_plotlyjs()
    policy = _policy([library, *(script for each in figures for script in SCRIPT.findall(each))])
    environment = Environment(loader=PackageLoader("foldray.results", "templates"), autoescape=True)
    template = environment.get_template("report.html")
    return template.render(p_text=p_text, figure=figure, policy=policy, plotly=library, **values)


SCRIPT = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)


def _policy(scripts: Sequence[str]) -> str:
    """The page's Content-Security-Policy: these inline scripts run, no other, and nothing is loaded or sent."""
    digests = [hashlib.sha256(script.encode()).digest() for script in dict.fromkeys(scripts)]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # Plotly sets styles of its own, and draws the picture that its button saves from data.
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _rank(rows: Sequence[ResultRow]) -> tuple[bool, bool, float]:
    """Folds in float32 before all others, then by WER of the deepest path."""
    return _is_int8(rows), rows[-1]["kind"] != "fold", rows[-1]["wer"]


def _is_int8(rows: Sequence[ResultRow]) -> bool:
    """Whether this is an int8 export of another run, which was not trained itself."""
    return rows[0]["precision"] == "int8"


def _baselines(trained: RowsByRun, family: str) -> dict[int, str]:
    """The newest run of a family trained at each depth by itself."""
    alone = [
        rows[0]
        for rows in trained.values()
        if (rows[0]["kind"], rows[0]["family"]) == ("baseline", family) and not _is_int8(rows)
    ]
    return {row["depth"]: row["run_id"] for row in sorted(alone, key=lambda row: row["created"])}


def _against_baselines(
    run_id: str, trained: RowsByRun, hypotheses: Mapping[str, HypothesesByDepth]
) -> dict[int, BaselineComparison]:
    """Compare each depth of a fold with its baseline, if there is one that was scored on the same utterances."""
    if trained[run_id][0]["kind"] == "baseline":
        return {}
    found: dict[int, BaselineComparison] = {}
    for depth, baseline in _baselines(trained, trained[run_id][0]["family"]).items():
        ours, theirs = hypotheses[run_id].get(depth), hypotheses[baseline].get(depth)
        if ours and theirs and ours.keys() == theirs.keys():
            pair = compare_hypotheses([(ours, theirs)], f"{run_id} and {baseline}")
            found[depth] = {**pair, "baseline": baseline}
    return found


def _headline(rows: Sequence[ResultRow]) -> str:
    """One sentence: what one file saves, and the WER and CER of each of its depths."""
    deepest = rows[-1]
    saved = 1 - deepest["params_stored"] / deepest["params_unrolled"]
    scores = ", ".join(f"{row['wer']:.1%} ({row['cer']:.1%}) at depth {row['depth']}" for row in rows)
    return (
        f"One file of {deepest['params_stored'] / 1e6:.2f} M parameters ({deepest['bytes_stored'] / 1e6:.1f} MB) "
        f"serves every depth, {saved:.1%} less than an unshared model of depth {deepest['depth']}. WER (CER): {scores}."
    )


def _paired(
    rows: Sequence[ResultRow], compared: Sequence[ResultRow], pairs: Mapping[int, BaselineComparison]
) -> list[dict[str, Any]]:
    """Rows for the template, those that were compared with their `pair`."""
    return [{**row, "pair": pairs.get(row["depth"]) if row in compared else None} for row in rows]


def _verdicts(best: str, pairs: Mapping[int, BaselineComparison], trained: RowsByRun, folds: int) -> list[str]:
    """Sentences on what the saving costs at each depth, and whether the difference is significant."""
    verdicts = [
        f"Depth {depth}: {pair['difference']:+.2%} WER against {pair['baseline']}, trained by itself "
        f"({pair['wer_a']:.2%} and {pair['wer_b']:.2%}; 95 % interval {pair['low']:+.2%} to {pair['high']:+.2%}, "
        f"MAPSSWE {p_text(pair['p_value'])}): {'significant' if pair['significant'] else 'not significant'}. "
        f"Audio in training, with repetitions: {_hours(trained[pair['baseline']])}, the fold {_hours(trained[best])}."
        for depth, pair in sorted(pairs.items())
    ]
    if not verdicts:
        verdicts.append("There is no baseline: no model trained at one of these depths by itself was scored here.")
    if folds > 1:
        verdicts.append(
            f"This fold was chosen as the best of {folds} on this very test set, by its deepest path. Expect a "
            "slightly higher WER on other data; no p-value here is corrected for that choice."
        )
    return verdicts


def _hours(rows: Sequence[ResultRow]) -> str:
    return f"{rows[0]['train_audio_seconds'] / 3600:.1f} h"


def p_text(p_value: float) -> str:
    """Format a p-value."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _search(search: Search) -> dict[str, Any]:
    """A search for the template, with plots of its history and of importances for each objective."""
    figures = []
    trials = [trial for trial in search.trials if trial.kind == "trial"]
    for objective in search.objectives:
        name = f"{search.search_id}-{objective}"
        figures.append(plots.as_html(plots.history_figure(trials, objective), f"history-{name}"))
        weights = importances(search, objective)
        if weights:
            figures.append(plots.as_html(plots.importance_figure(weights, objective), f"importance-{name}"))
    return {"search_id": search.search_id, "trials": search.trials, "objectives": search.objectives, "figures": figures}
