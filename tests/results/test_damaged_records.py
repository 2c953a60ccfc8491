"""Damaged records of runs are one line that names the file."""

import json
from pathlib import Path

import pytest

from foldray.errors import DamagedFileError
from foldray.results.metrics import read_metrics
from foldray.results.run_tables import runs_table

BROKEN = ["", "{", "[]", "1", "[" * 50_000, "\0"]


STEP = {"step": 1, "seconds": 1.0, "audio_seconds": 1.0}
WRONG = [{"ctc": 3.0}, {"ctc": {"": 1.0}}, {"kl": {"six": 1.0}}, {"padding": {"6": 0.1}}, {"valid_ctc": 1}]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "1",
        "{}",
        '{"step": "x"}',
        "[" * 50_000,
        '{"step": null}',
        *(json.dumps(STEP | each) for each in WRONG),
    ],
)
def test_damaged_metrics_name_their_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/0001-0001-00000001.jsonl").write_text(f"{line}\n")
    with pytest.raises(DamagedFileError, match=r"0001-0001-00000001\.jsonl: is damaged \("):
        read_metrics(str(tmp_path))


@pytest.mark.parametrize("name", ["spec.json", "run.json"])
@pytest.mark.parametrize("content", [*BROKEN, '{"fold": 1, "name": [1], "created": 3}', '{"name": {}, "created": {}}'])
def test_a_damaged_run_names_its_file(name: str, content: str, tmp_path: Path) -> None:
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    for each in ("spec.json", "run.json"):
        (run / each).write_text(json.dumps({}))
    (run / name).write_text(content)
    with pytest.raises(DamagedFileError, match=r"(spec|run)\.json: is damaged \("):
        runs_table(str(tmp_path))
