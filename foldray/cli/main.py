"""The command line: `foldray VERB RECIPE key=value …`. Heavy imports wait until a verb needs them."""

from collections.abc import Sequence

import typer

from foldray.cli.calibrate import calibrate
from foldray.cli.check import doctor
from foldray.cli.exits import run_command
from foldray.cli.push import push
from foldray.cli.results import report, results
from foldray.cli.serve import serve
from foldray.cli.train import plan, prepare, recipes, resume, run, train, tune
from foldray.cli.transcribe import transcribe
from foldray.cli.use import evaluate, export

app = typer.Typer(
    name="foldray",
    help="Fold speech models: one file of the seed's size serves every depth.\n\nStart with: foldray run quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    recipes, plan, prepare, train, resume, evaluate, run, tune, results, report, transcribe, serve, calibrate, export,
    push, doctor,
):  # fmt: skip
    app.command()(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exits 0 on success, 2 for wrong input (one line on stderr), 1 for anything else."""
    run_command(app, arguments)
