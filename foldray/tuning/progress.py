"""Progress of a search's trials: a live table on a terminal, lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from foldray.results.searches import TrialRecord, figure
from foldray.runtime.terminal import as_text, errors, print_status


class Progress:
    """Shows the newest record of every trial."""

    def __init__(self, objectives: tuple[str, ...], live: Live | None) -> None:
        self._objectives = objectives
        self._live = live
        self._records: dict[str, TrialRecord] = {}

    def update(self, record: TrialRecord) -> None:
        """Show the newest record of a trial."""
        if self._records.get(record.name) == record:
            return
        self._records[record.name] = record
        if self._live:
            self._live.update(self._table())
        elif record.kind != "start":
            fields = " ".join(record.overrides)
            print_status(f"{record.name:13} {record.state:8} {record.progress:4.0%}  {_scores(record)}  {fields}")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("trial", "state", "trained", "loss", *self._objectives):
            table.add_column(column, justify="left" if column in ("trial", "state") else "right")
        table.add_column("fields", overflow="fold")
        for record in sorted(self._records.values(), key=lambda record: record.name):
            loss = "" if record.loss is None else f"{record.loss:.3f}"
            values = [figure(name, record.objectives.get(name)) for name in self._objectives]
            cells = [record.name, record.state, f"{record.progress:.0%}", loss, *values, " ".join(record.overrides)]
            table.add_row(*map(as_text, cells))
        return table


def _scores(record: TrialRecord) -> str:
    loss = [] if record.loss is None else [f"loss {record.loss:.3f}"]
    return "  ".join([*loss, *(f"{name} {figure(name, value)}" for name, value in record.objectives.items())])


@contextmanager
def show_progress(objectives: tuple[str, ...]) -> Iterator[Progress]:
    """Show trials while a block runs."""
    if not errors.is_terminal:
        yield Progress(objectives, None)
        return
    with Live(console=errors, refresh_per_second=2) as live:
        yield Progress(objectives, live)
