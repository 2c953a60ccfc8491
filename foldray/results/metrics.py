"""Training metrics: immutable JSON lines files, because object stores can't append, merged by step when read."""

import json
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic checks no other before Python 3.12

from foldray import storage
from foldray.storage.layout import Run
from foldray.storage.records import check_as

Record = dict[str, Any]

CURVES = {
    "ctc": ("CTC", "solid"),
    "attention": ("attention", "longdash"),
    "kl": ("KL", "dot"),
    "hidden": ("hidden states", "dashdot"),
    "teacher": ("KL from the teacher", "dot"),
    "valid_ctc": ("validation CTC", "dash"),
    "valid_attention": ("validation attention", "dash"),
}
"""Values by depth, the name of each in plots, and its dash."""
VALIDATION = "validation"
"""Replaces the attempt in the names of validation's parts, which are written later than those of their steps."""


def write_metrics(run: str, attempt: str, records: list[Record]) -> None:
    """Write records of consecutive steps to `<run>/metrics/<attempt>-<first step>.jsonl`."""
    if records:
        text = "".join(json.dumps(record) + "\n" for record in records)
        storage.write_bytes(Run(run).metrics_part(attempt, records[0]["step"]), text.encode())


_ByDepth = dict[Annotated[str, Field(pattern=r"^\d{1,6}$")], float]
_Numbers = dict[str, float | _ByDepth]
"""A record: a number, or one by depth, under each name."""
_Parts = TypedDict("_Parts", dict.fromkeys(CURVES, _ByDepth), total=False)  # type: ignore[misc]
"""What a record has by depth, if it has it."""


class _Validation(TypedDict):
    """What a record of a validation must have."""

    step: int


class _Step(_Validation):
    """What a record of a training step must have."""

    seconds: float
    audio_seconds: float
    padding: NotRequired[float]


def validation_loss(record: Record) -> dict[str, float]:
    """The loss of a validation by depth: CTC, or the cross-entropy of a decoder without CTC."""
    losses: dict[str, float] = record.get("valid_ctc") or record["valid_attention"]
    return losses


def read_metrics(run: str) -> list[Record]:
    """Read the record of each step, in order. Where attempts overlap the later one counts, because its weights do.

    Raises DamagedFileError naming a part that is no JSON lines of steps.
    """
    by_step: dict[int, Record] = {}
    folder = Run(run).metrics
    # Sorted by attempt; validation's parts come last.
    for name in storage.list_files(folder):
        part = storage.join(folder, name)
        for line in storage.read_bytes(part).decode(errors="replace").splitlines():
            record: Record = storage.parse_json(line, part)
            check_as(_Numbers, record, part, strict=True)
            check_as(_Parts, record, part, strict=True)
            check_as(_Validation if name.startswith(VALIDATION) else _Step, record, part, strict=True)
            if not name.startswith(VALIDATION):
                by_step[record["step"]] = record
            elif record["step"] in by_step:
                by_step[record["step"]].update(record)
    return [by_step[step] for step in sorted(by_step)]
