"""Verbs for the results of a store: results, report."""

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from foldray.cli.options import Json, StoreArgument
from foldray.cli.tables import SHOWN, cell, comparison_table, row_list
from foldray.errors import UserError
from foldray.runtime.terminal import print_json, print_line, print_status, print_table

TERMINAL_ROWS = 100
WIDEST = 100
"""Columns of a table of `sql`; more are printed one value a line."""
TAKES: dict[str, set[str]] = {
    "ls": {"sort", "columns", "limit"},
    "pareto": {"of", "dominated", "columns"},
    "compare": {"margin", "by-speaker"},
    "sql": {"limit"},
}
"""The queries, and the options of each."""


Columns = Annotated[
    str | None, typer.Option(help="Additional columns of the table, such as private,alpha,seed (ls, pareto).")
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum number of rows; default: 100 on a terminal, all with --json (ls, sql)."),
]
Margin = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="WER points by which A may be worse; reports whether the whole interval is at or below it (compare).",
    ),
]


def results(
    store: StoreArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="ls, pareto, compare or sql.")] = "ls",
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT", help="Filters, two run ids, or a SELECT.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="Columns to sort by; '-' before one puts its largest values first; default -created (ls)."),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(help="Two or three of wer, cer, bytes, params, macs, rtfx, …; default wer,bytes (pareto)."),
    ] = None,
    dominated: Annotated[bool, typer.Option("--dominated", help="Show the dominated rows too (pareto).")] = False,
    columns: Columns = None,
    limit: Limit = None,
    margin: Margin = None,
    by_speaker: Annotated[
        bool, typer.Option("--by-speaker", help="Resample whole speakers, not utterances, for the interval (compare).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Query the results of a store; needs no Ray.

    \b
    ls [FILTER]...       rows, such as: ls depth=6 'wer<0.1' run_id~an4 --sort wer
    pareto [FILTER]...   the rows on the Pareto front
    compare RUN_A RUN_B  every pair of depths, with significance
    sql "SELECT ..."     over the tables results, hypotheses, runs and trials

    compare takes filters too, such as split=test. A1,A2 B1,B2 compares several runs as one: random seeds, or parts of
    a cross-validation. With --margin 1 it says whether A is at most one point of WER worse.

    Example: foldray results ./foldray-store pareto --of wer,macs split=test
    """
    options = {"sort": sort, "of": of, "dominated": dominated, "columns": columns, "limit": limit}
    _check_options(query, options | {"margin": margin, "by-speaker": by_speaker})
    given = arguments or []
    most = limit or (None if as_json else TERMINAL_ROWS)
    if query == "ls":
        _list(store, given, sort or "-created", most, columns, as_json)
    elif query == "pareto":
        _pareto(store, given, (of or "wer,bytes").split(","), dominated, columns, as_json)
    elif query == "compare":
        _compare(store, given, None if margin is None else margin / 100, by_speaker, as_json)
    else:
        _sql(store, given, most, as_json)


def _list(store: str, filters: list[str], sort: str, most: int | None, columns: str | None, as_json: bool) -> None:
    from foldray.results.query import list_rows

    more = _known_columns(columns)
    rows, total = list_rows(store, filters, sort, most)
    _show(store, {"rows": rows, "total": total}, as_json, lambda: row_list(rows, more))
    if len(rows) < total and not as_json:
        print_status(f"{len(rows):,} of {total:,} rows; see more with --limit, or filter, such as depth=6")


def _pareto(
    store: str, filters: list[str], objectives: list[str], dominated: bool, columns: str | None, as_json: bool
) -> None:
    from foldray.results.query import OBJECTIVES, pareto

    more = _known_columns(columns)
    rows = pareto(store, objectives, filters, dominated=dominated)
    weighed = [name for name in (OBJECTIVES[each][0] for each in objectives) if name not in SHOWN]
    shown = list(dict.fromkeys([*weighed, *more, *["dominated"] * dominated]))
    _show(store, {"rows": rows}, as_json, lambda: row_list(rows, shown))


def _compare(store: str, given: list[str], margin: float | None, by_speaker: bool, as_json: bool) -> None:
    from foldray.results.comparison import compare_runs

    if len(given) < 2:
        raise UserError("compare", "give two run ids; `foldray results STORE ls` lists them")
    run_a, run_b, *filters = given
    pairs = compare_runs(store, run_a, run_b, filters, margin=margin, by_speaker=by_speaker)
    _show(store, {"pairs": pairs}, as_json, lambda: comparison_table(run_a, run_b, pairs))


def _sql(store: str, given: list[str], most: int | None, as_json: bool) -> None:
    from foldray.results.query import run_sql

    if len(given) != 1:
        raise UserError("sql", 'give one SELECT in quotes, such as "SELECT run_id, min(wer) FROM results GROUP BY 1"')
    rows, names = run_sql(store, given[0], most)
    _show(store, {"rows": rows}, as_json, lambda: _sql_table(names, rows))


def _sql_table(names: list[str], rows: list[dict[str, object]]) -> None:
    """Print rows as a table, or one value a line where no terminal is wide enough for the columns."""
    if len(names) <= WIDEST:
        print_table("", names, [[cell(value) for value in row.values()] for row in rows])
        return
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            print_line(f"row {number} {name}: {cell(value)}")


def _known_columns(columns: str | None) -> list[str]:
    from foldray.results.query import known_column

    return [known_column(name.strip()) for name in columns.split(",")] if columns else []


def _check_options(query: str, options: Mapping[str, object]) -> None:
    """Raise UserError for an unknown query, or an option that the query does not take."""
    if query not in TAKES:
        raise UserError("QUERY", f"'{query}' must be one of {', '.join(TAKES)}")
    for name, value in options.items():
        if value is not None and value is not False and name not in TAKES[query]:
            takers = " and ".join(other for other, names in TAKES.items() if name in names)
            raise UserError(f"--{name}", f"applies only to {takers}, not to {query}")


def _show(store: str, answer: Mapping[str, object], as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        print_json(answer)
    elif any(answer.values()):
        show()
    else:
        print_status(f"no matching rows in {store}; `foldray run quickstart` creates some")


def report(
    store: StoreArgument,
    filters: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILTER", help="Rows to report, such as run_id~an4 (as in `results ls`)."),
    ] = None,
    out: Annotated[str | None, typer.Option("-o", "--out", help="Folder for the page; default: STORE/report.")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page with tables and plots.

    Example: foldray report ./foldray-store -o ./report
    """
    from foldray.results.report import write_report

    page = write_report(store, out, filters or ())
    if as_json:
        print_json({"report": page})
    else:
        print_line(page)
