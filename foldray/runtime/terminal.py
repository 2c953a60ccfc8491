"""Everything that foldray prints: progress bars, status lines, tables, JSON. All except results goes to stderr.

Paths, transcripts and names come from strangers, so `printable` escapes what a terminal would obey. No other module of
foldray writes to stdout or stderr.
"""

import json
import logging
import math
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 15.0
"""Seconds between progress lines where stderr is not a terminal, such as a log file or a job."""

errors = Console(stderr=True, highlight=False)
output = Console(highlight=False, width=None if sys.stdout and sys.stdout.isatty() else 10**7)
"""Tables have the width of the terminal; in files and pipes nothing wraps, so that every line is a whole row."""

HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # controls, among them ESC, CR, LF and the C1 forms of escape sequences
    r"\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # order of display, and characters without width
    r"\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f"  # line ends, annotations, tags
    r"\ud800-\udfff]"  # bytes of file names that are not UTF-8
)
"""Characters that change how a terminal shows others. Joiners (U+200C, U+200D) are part of words in many scripts."""


def printable(text: str) -> str:
    """Return text as one line that a terminal shows as it is: controls become escapes such as \\x1b or \\u202e.

    Example:
        >>> printable("a.wav\\nprepared  9999 utterances")
        'a.wav\\\\nprepared  9999 utterances'
    """
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def print_status(text: str) -> None:
    """Print one line to stderr."""
    errors.print(printable(text), soft_wrap=True, markup=False)


def print_line(text: str) -> None:
    """Print one line of a result to stdout."""
    output.print(printable(text), soft_wrap=True, markup=False)


def prepare_streams() -> None:
    """Make every locale print every text, and filter what Python itself prints: warnings, logs, tracebacks."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file that is opened would get what libraries print
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r+", encoding="utf-8", buffering=1))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _print_warning
    if logging.lastResort:
        logging.lastResort.setFormatter(_OneLine())
    sys.excepthook = _print_traceback


def _print_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    print_status(f"{category.__name__}: {message}")


class _OneLine(logging.Formatter):
    """Formats a record without its traceback as one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (a method of logging)
        return printable(super().formatMessage(record))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught exception; lines inside its message are indented, so that they pass for no line of ours."""
    for chunk in traceback.TracebackException(kind, error, trace).format():
        first, *inner = chunk.splitlines()
        for line in (first, *(f"  {each}" for each in inner)):
            print_status(line)


_json_output: ContextVar[TextIO | None] = ContextVar("json_output", default=None)


def print_json(value: Mapping[str, object]) -> None:
    """Write the result of a command with --json: one object on stdout, in ASCII; NaN and infinity become null."""
    stream = _json_output.get() or sys.stdout
    stream.write(json.dumps(_finite(value), allow_nan=False) + "\n")
    stream.flush()  # here, where an error is reported: a disk may be full


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


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


class Counter(Protocol):
    """Shows how many are done."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Show `done` of `total`, and a few words on how it goes."""


@contextmanager
def counting(what: str) -> Iterator[Counter]:
    """Show a bar of `done` and `total` while a block runs; without a terminal, a line every LINE_SECONDS."""
    columns = (
        TextColumn("{task.description:9}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(what, total=1, start=True, detail="")
        printed = time.monotonic()

        def show(done: int, total: int, detail: str = "") -> None:
            nonlocal printed
            progress.update(task, completed=done, total=total, detail=detail)
            if not errors.is_terminal and time.monotonic() - printed >= LINE_SECONDS:
                printed = time.monotonic()
                print_status(f"{what:9} {done}/{total}{detail and f'  {detail}'}")

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
                print_status(f"validated step {record['step']}  {_describe_rates(record)}")
                return
            text = tracker.describe(record)
            progress.update(task, completed=record["progress"], description=printable(text))
            if not errors.is_terminal and tracker.line_due():
                print_status(f"training {record['progress']:4.0%}  {text}")

        yield show
        progress.update(task, completed=1.0)


def _describe_rates(record: Mapping[str, Any]) -> str:
    """The error rates of a validation by depth; those of characters are missing from records of older versions."""
    rates = {"WER": record["valid_wer"], "CER": record.get("valid_cer", {})}
    named = {name: "  ".join(f"{depth}: {rate:.1%}" for depth, rate in found.items()) for name, found in rates.items()}
    return "  ".join(f"{name} by depth  {described}" for name, described in named.items() if described)


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
    if title:  # by itself: as the table's title it would wrap at the table's width
        output.print(as_text(title), style="italic", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(row[i][:1] in "-+.0123456789" and row[i] for row in rows)
        table.add_column(as_text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(as_text, row))
    output.print(table)


def as_text(cell: str) -> Text:
    """Return a cell for a table; as Text, because rich reads names with [brackets] as markup otherwise."""
    return Text(printable(cell))
