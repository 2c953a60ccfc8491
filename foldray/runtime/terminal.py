"""Progress bars, status lines and tables on the terminal. Everything except results goes to stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 15.0
"""Seconds between progress lines where stderr is not a terminal, such as a log file or a job."""

errors = Console(stderr=True, highlight=False)
output = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def print_status(text: str) -> None:
    """Print one line to stderr."""
    errors.print(text, soft_wrap=True, markup=False)


_json_output: ContextVar[TextIO | None] = ContextVar("json_output", default=None)


def print_json(value: Mapping[str, object]) -> None:
    """Write the result of a command with --json: one object on stdout."""
    (_json_output.get() or sys.stdout).write(json.dumps(value) + "\n")


@contextmanager
def json_only() -> Iterator[None]:
    """Reserve stdout for `print_json` while a block runs; everything else that is printed goes to stderr.

    Ray prints lost nodes to stdout, at any log level and until the process ends.
    """
    stdout = sys.stdout
    token = _json_output.set(stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_output.reset(token)
        if stdout is sys.__stdout__:
            sys.stdout = sys.stderr


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar of `done` and `total` while a block runs; without a terminal, a line every LINE_SECONDS.

    Yields:
        A function that takes `done` and `total`.
    """
    columns = (
        TextColumn("{task.description:9}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(what, total=1, start=True)
        printed = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal printed
            progress.update(task, completed=done, total=total)
            if not errors.is_terminal and time.monotonic() - printed >= LINE_SECONDS:
                printed = time.monotonic()
                print_status(f"{what:9} {done}/{total}")

        yield show


@contextmanager
def training_bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a bar with the loss of each depth, audio seconds per second and the time left while a block runs.

    Yields:
        A function that takes metrics records, of training steps and of validations.
    """
    columns = (
        TextColumn("training "),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        task = progress.add_task("starting workers", total=1.0)
        tracker = _Tracker()

        def show(record: dict[str, Any]) -> None:
            if "progress" not in record:
                wers = "  ".join(f"{depth}: {wer:.1%}" for depth, wer in record["valid_wer"].items())
                print_status(f"validated step {record['step']}  WER by depth  {wers}")
                return
            text = tracker.describe(record)
            progress.update(task, completed=record["progress"], description=text)
            if not errors.is_terminal and tracker.line_due():
                print_status(f"training {record['progress']:4.0%}  {text}")

        yield show
        progress.update(task, completed=1.0)


class _Tracker:
    """Smooths the speed and estimates the time left from the progress since the first record."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._speed = 0.0
        self._line = 0.0

    def describe(self, record: dict[str, Any]) -> str:
        now = time.monotonic()
        if self._began is None:
            self._began = now, record["progress"]
        speed = record["audio_seconds"] / max(record["seconds"], 1e-9)
        self._speed = speed if not self._speed else 0.9 * self._speed + 0.1 * speed
        losses = "  ".join(
            f"{depth}: {loss:.2f}" for depth, loss in record.get("ctc", record.get("attention", {})).items()
        )
        return f"step {record['step']}  loss by depth  {losses}  {self._speed:.0f} audio s/s  {self._left(now, record)}"

    def _left(self, now: float, record: dict[str, Any]) -> str:
        assert self._began is not None
        began, first = self._began
        if record["progress"] <= first:
            return ""
        left = (now - began) * (1 - record["progress"]) / (record["progress"] - first)
        return f"{int(left // 60)}:{int(left % 60):02d} left"

    def line_due(self) -> bool:
        due = time.monotonic() - self._line >= LINE_SECONDS
        if due:
            self._line = time.monotonic()
        return due


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout; columns of numbers are aligned right."""
    # As Text, so that rich does not read names and hypotheses with [brackets] as markup.
    table = Table(
        title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(row[i][:1] in "-+.0123456789" and row[i] for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    output.print(table)
