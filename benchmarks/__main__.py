"""`python -m benchmarks NAME`: one benchmark with its peer, side by side in one run; the ratios are what counts.

Nothing else should run on the machine meanwhile. Example: `python -m benchmarks joint-step --rounds 3`
"""

from typing import Annotated, TypeAlias

import typer

from benchmarks import BENCHMARKS, run_benchmark
from benchmarks.measure import BenchmarkResult
from foldray.cli.exits import run_command
from foldray.cli.options import Json
from foldray.runtime.terminal import counting, print_json, print_line, print_table

Value: TypeAlias = float | str | dict[str, float]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=f"{', '.join(BENCHMARKS)}, or all.")],
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds (all but resume, prepare and consumers).")] = 5,
    hours: Annotated[float, typer.Option(min=0.01, help="Hours of audio (prepare; transcribe: at most 1).")] = 10.0,
    utterances: Annotated[int, typer.Option(min=1000, help="Utterances of the manifest (resume).")] = 1_000_000,
    peer: Annotated[bool, typer.Option(help="Run the peer too (resume).")] = True,
    width: Annotated[int, typer.Option(min=64, max=1024, help="Width of the model (serve).")] = 256,
    as_json: Json = False,
) -> None:
    """Run a benchmark next to its peer. Nothing else should run on the machine meanwhile.

    \b
    joint-step: a joint training step against the deepest path alone.
    one-cycle: a step of a fold against steps of all the models it replaces.
    resume: resuming in the middle of an epoch of a huge corpus.
    prepare: hours of audio prepared per second.
    ingest: batches per second into a model that does nothing.
    consumers: ways of feeding 64 training workers.
    train: utterances per second under Ray Train and in a bare loop.
    serve: mixed depths over HTTP, against the deepest and separate models, and a latency budget.
    results: queries over a store of a million rows.
    transcribe: a corpus transcribed as a job, in a bare loop, and by stock transformers.

    Example: python -m benchmarks joint-step
    """
    measured = []
    for chosen in BENCHMARKS if name == "all" else (name,):
        with counting(f"measuring {chosen}") as on_progress:
            measured.append(
                run_benchmark(
                    chosen,
                    rounds=rounds,
                    hours=hours,
                    utterances=utterances,
                    with_peer=peer,
                    width=width,
                    on_progress=on_progress,
                )
            )
        if not as_json:
            benchmark_tables(measured[-1])
    if as_json:
        print_json({"benchmarks": measured} if name == "all" else dict(measured[0]))


def benchmark_tables(measured: BenchmarkResult) -> None:
    """Print the values of both sides, their ratios, and the shape of the work."""
    parts = {"ours": measured["ours"], "peer": measured["peer"], "ratio": measured["ratio"]}
    for part, values in parts.items():
        print_table("", [part, "value"], [[key, _figure(value)] for key, value in values.items()])
    print_line(measured["shape"])


def _figure(value: Value) -> str:
    """A measured value, or the values of a part."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_figure(each)}" for key, each in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value / 2**20:,.0f} MiB" if abs(value) >= 2**22 else f"{value:,.3f}"


if __name__ == "__main__":
    run_command(app, program="python -m benchmarks")
