"""Exit codes: 0 when done, 2 for wrong input (one line on stderr), 1 for anything else."""

import os
import sys
from collections.abc import Sequence

import typer

from foldray.errors import UserError
from foldray.runtime.terminal import json_only, prepare_streams, print_json, print_status
from foldray.storage import explain_disk


def run_command(app: typer.Typer, arguments: Sequence[str] | None = None, program: str = "foldray") -> None:
    """Run a Typer app on arguments (default: those of this process) and exit as the module's docstring says.

    program: how the app is called, for the hint after a usage error.
    """
    prepare_streams()
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
        told = _about_family(error, given)
        _fail(given, told.where, told.problem)
    except (KeyboardInterrupt, typer.Abort):
        _stopped(given, program)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        _discard_stdout()
        sys.exit(1)
    except Exception as error:
        if explained := explain_environment(error):
            _fail(given, explained.where, explained.problem)
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


def _about_family(error: UserError, given: Sequence[str]) -> UserError:
    """Report a field of `model.config` that the user did not type as an error of the `model.family` that was typed.

    A recipe's model.config belongs to the recipe's family.
    """
    family = next((each for each in given if each.startswith("model.family=")), "")
    if (
        not family
        or not error.where.startswith("model.config")
        or any(each.startswith("model.config") for each in given)
    ):
        return error
    name, fix = family.partition("=")[2], "start from a recipe of that family, or replace it with model.config={}"
    return UserError("model.family", f"{name} does not fit the recipe's model.config ({error}); {fix}")


def explain_environment(error: Exception) -> UserError | None:
    """Describe an error of the disk or the locale in one line; None for other errors."""
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        where = sys.getfilesystemencoding()
        return UserError("locale", f"file names are {where} here, which lacks some characters; set PYTHONUTF8=1")
    return explain_disk(error)


def _fail(given: Sequence[str], where: str, problem: str) -> None:
    print_status(f"{where}: {problem}")
    if "--json" in given:
        try:
            print_json({"error": problem, "where": where})
        except OSError:  # stdout is what is full
            _discard_stdout()
    sys.exit(2)


def _discard_stdout() -> None:
    """Direct stdout to nowhere, so that what could not be written does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
