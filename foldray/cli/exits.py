"""Exit codes: 0 when done, 2 for wrong input (one line on stderr), 1 for anything else."""

import os
import sys
from collections.abc import Sequence

import typer

from foldray.errors import UserError, one_line
from foldray.runtime.terminal import json_only, print_json, print_status


def run_command(app: typer.Typer, arguments: Sequence[str] | None = None, program: str = "foldray") -> None:
    """Run a Typer app on arguments (default: those of this process) and exit as the module's docstring says.

    program: how the app is called, for the hint after a usage error.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--json" not in given:
        _run(app, given, program)
        return
    with json_only():
        _run(app, given, program)


def _run(app: typer.Typer, given: list[str], program: str) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        status = app(given or ["--help"], standalone_mode=False)
    except UserError as error:
        _fail(given, error.where, error.problem)
    except (KeyboardInterrupt, typer.Abort):
        _stopped(given, program)
    except PermissionError as error:
        _fail(given, "storage", f"{one_line(error)}; fix its permissions, or choose another storage.root")
    except Exception as error:
        # Typer carries its own copy of click, so its usage errors have no public base class.
        if not hasattr(error, "format_message"):
            if "--json" in given:
                print_json({"error": f"{type(error).__name__}: {error}", "where": program})
            raise
        known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
        hint = f"{program} {given[0]} --help" if given and given[0] in known else f"{program} --help"
        _fail(given, program, f"{error.format_message()} (see `{hint}`)")
    else:
        if status == INTERRUPTED:
            _stopped(given, program)
        if isinstance(status, int) and status:
            sys.exit(status)


INTERRUPTED = 130
"""The exit status that Typer returns for Ctrl-C in a command."""


def _stopped(given: Sequence[str], program: str) -> None:
    if "--json" in given:
        print_json({"error": "interrupted", "where": program})
    print_status("stopped; run the same command again to resume")
    sys.exit(1)


def _fail(given: Sequence[str], where: str, problem: str) -> None:
    if "--json" in given:
        print_json({"error": problem, "where": where})
    print_status(f"{where}: {problem}")
    sys.exit(2)
