"""`foldray results`: questions to a store, on the command line."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from foldray.cli.tables import SHOWN, cell, comparison_table, row_list
from foldray.errors import UserError
from foldray.runtime.terminal import print_json, print_status, print_table

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else on stderr.")]
TERMINAL_ROWS = 100
TAKES: dict[str, set[str]] = {
    "ls": {"sort", "columns", "limit"},
    "pareto": {"of", "dominated", "columns"},
    "compare": {"margin", "by-speaker"},
    "sql": {"limit"},
}
"""The queries, and the options of each."""


def results(
    store: Annotated[str, typer.Argument(help="The store: a folder or s3://bucket/prefix.")],
    query: Annotated[str, typer.Argument(help="ls, pareto, compare or sql.")] = "ls",
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENT]...", help="Filters, two run ids, or a SELECT.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="Columns to sort by, '-' before one: largest first; default -created (ls).")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(help="Two or three of wer, cer, bytes, params, macs, rtfx, …; default wer,bytes (pareto)."),
    ] = None,
    dominated: Annotated[bool, typer.Option("--dominated", help="Also the rows that others beat (pareto).")] = False,
    columns: Annotated[
        str | None, typer.Option(help="More columns for the table, such as private,alpha,seed (ls, pareto).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows at most; default: 100 on a terminal, all with --json (ls, sql).")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Points of WER that A may be worse by; is the interval at or below it? (compare)."),
    ] = None,
    by_speaker: Annotated[
        bool, typer.Option("--by-speaker", help="Intervals that draw whole speakers, not utterances (compare).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Query the results of a store; needs no Ray.

    ls FILTER…: rows, such as `ls depth=6 'wer<0.1' run_id~an4 --sort wer`. pareto FILTER…: the rows nothing beats.
    compare RUN_A RUN_B [split=test]: every pair of depths, with significance; A1,A2 B1,B2 for several runs as one
    (seeds, parts of a cross-validation); --margin 1: is A shown to be at most one point worse? sql "SELECT …": over
    the tables results, hypotheses, runs and trials.

    Example: foldray results ./foldray-store pareto --of wer,macs split=test
    """
    from foldray.results import comparison
    from foldray.results import query as queries

    options = {"sort": sort, "of": of, "dominated": dominated, "columns": columns, "limit": limit}
    _check_options(query, options | {"margin": margin, "by-speaker": by_speaker})
    given = arguments or []
    most = limit or (None if as_json else TERMINAL_ROWS)
    more = [queries.known_column(name.strip()) for name in columns.split(",")] if columns else []
    if query == "ls":
        rows, total = queries.list_rows(store, given, sort or "-created", most)
        _show(store, {"rows": rows, "total": total}, as_json, lambda: row_list(rows, more))
        if len(rows) < total and not as_json:
            print_status(f"{len(rows):,} of {total:,} rows; --limit shows more, filters such as depth=6 fewer")
    elif query == "pareto":
        weighed = (of or "wer,bytes").split(",")
        rows = queries.pareto(store, weighed, given, dominated=dominated)
        unseen = [name for name in (queries.OBJECTIVES[each][0] for each in weighed) if name not in SHOWN]
        shown = list(dict.fromkeys([*unseen, *more, *["dominated"] * dominated]))
        _show(store, {"rows": rows}, as_json, lambda: row_list(rows, shown))
    elif query == "compare":
        if len(given) < 2:
            raise UserError("compare", "give two run ids; `foldray results STORE ls` lists them")
        run_a, run_b, *filters = given
        points = None if margin is None else margin / 100
        pairs = comparison.compare_runs(store, run_a, run_b, filters, margin=points, by_speaker=by_speaker)
        _show(store, {"pairs": pairs}, as_json, lambda: comparison_table(run_a, run_b, pairs))
    else:
        if len(given) != 1:
            raise UserError(
                "sql", 'give one SELECT in quotes, such as "SELECT run_id, min(wer) FROM results GROUP BY 1"'
            )
        rows, names = queries.run_sql(store, given[0], most)
        _show(
            store, {"rows": rows}, as_json, lambda: print_table("", names, [[*map(cell, row.values())] for row in rows])
        )


def _check_options(query: str, options: dict[str, Any]) -> None:
    """Refuse a query that is none, and options that another one takes. Raises UserError."""
    if query not in TAKES:
        raise UserError(query, f"is not a query; use {', '.join(TAKES)}")
    for name, value in options.items():
        if value is not None and value is not False and name not in TAKES[query]:
            takers = " and ".join(other for other, names in TAKES.items() if name in names)
            raise UserError(f"--{name}", f"is of {takers}; {query} does not take it")


def _show(store: str, answer: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        print_json(answer)
    elif any(answer.values()):
        show()
    else:
        print_status(f"nothing in {store} answers that; `foldray run quickstart` makes results")
