"""Training metrics: immutable JSON lines files, because object stores can't append, merged by step when read."""

import json
from typing import Any

from foldray import storage
from foldray.storage.layout import Run

Record = dict[str, Any]

VALIDATION = "validation"
"""Replaces the attempt in the names of validation's parts, which are written later than those of their steps."""


def write_metrics(run: str, attempt: str, records: list[Record]) -> None:
    """Write records of consecutive steps to `<run>/metrics/<attempt>-<first step>.jsonl`."""
    if records:
        text = "".join(json.dumps(record) + "\n" for record in records)
        storage.write_bytes(Run(run).metrics_part(attempt, records[0]["step"]), text.encode())


def read_metrics(run: str) -> list[Record]:
    """Read the record of each step, in order. Where attempts overlap the later one counts, because its weights do."""
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
