"""Damaged records of runs are one line that names the file."""

import json
from pathlib import Path

import pytest

from foldray.errors import DamagedFileError, UserError
from foldray.results.metrics import read_metrics
from foldray.results.reader import read_hypotheses
from foldray.results.rows import write_rows
from foldray.results.run_tables import runs_table
from tests.support.rows import hypothesis, row

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


@pytest.mark.parametrize(
    "damage", [{"alignment": "CC"}, {"alignment": "CCCX"}, {"alignment": ""}, {"reference": "one"}]
)
def test_an_alignment_that_is_not_one_of_its_texts_names_the_utterance(damage: dict[str, str], tmp_path: Path) -> None:
    said = hypothesis("one two three", "one too three", id="u7")
    write_rows(str(tmp_path), [row()], [said])
    assert read_hypotheses(str(tmp_path), "run-0")[0]["alignment"] == "CSC"
    write_rows(str(tmp_path / "other"), [row()], [{**said, **damage}])  # type: ignore[typeddict-item]
    with pytest.raises(UserError, match=r"^run-0: has a damaged hypothesis of utterance u7: .*score the run again"):
        read_hypotheses(str(tmp_path / "other"), "run-0")
