"""The command line: `foldray VERB RECIPE key=value …`. Heavy imports wait until a verb needs them."""

from collections.abc import Sequence

import typer

from foldray.cli.check import doctor
from foldray.cli.exits import run_command
from foldray.cli.results import report, results
from foldray.cli.train import plan, prepare, recipes, resume, run, train, tune
from foldray.cli.use import evaluate, export, transcribe

app = typer.Typer(
    name="foldray",
    help="Fold speech models: one file of the seed's size serves every depth.\n\nStart with: foldray run quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    recipes, plan, prepare, train, resume, evaluate, run, tune, results, report, transcribe, export, doctor,
):  # fmt: skip
    app.command()(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exits 0 on success, 2 for wrong input (one line on stderr), 1 for anything else."""
    run_command(app, arguments)
