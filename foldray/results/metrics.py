"""Training metrics as immutable parts, because object stores can't append; merged by step when read."""

import json
from typing import Any

from foldray import storage
from foldray.storage.layout import Run

Record = dict[str, Any]

VALIDATION = "validation"
"""Stands for the attempt in the names of validation's parts, which come later than the steps they belong to."""


def write_metrics(run: str, attempt: str, records: list[Record]) -> None:
    """One part: records of consecutive steps under `<run>/metrics/<attempt>-<first step>.jsonl`."""
    if records:
        text = "".join(json.dumps(record) + "\n" for record in records)
        storage.write_bytes(Run(run).metrics_part(attempt, records[0]["step"]), text.encode())


def read_metrics(run: str) -> list[Record]:
    """Every step once, in order. Where attempts overlap the later one wins, as its weights did."""
    by_step: dict[int, Record] = {}
    folder = Run(run).metrics
    # Sorted by attempt; validation's parts come last.
    for name in storage.list_files(folder):
        part = storage.join(folder, name)
        for line in storage.read_bytes(part).decode().splitlines():
            record = storage.parse_json(line, part)
            if not name.startswith(VALIDATION):
                by_step[record["step"]] = record
            elif record["step"] in by_step:
                by_step[record["step"]].update(record)
    return [by_step[step] for step in sorted(by_step)]
