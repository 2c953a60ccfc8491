"""The example that splits a corpus by speaker: every row once, no speaker in both halves."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.support.paths import PROJECT

EXAMPLE = PROJECT / "examples" / "split_speakers.py"


def rows_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_halves_have_every_row_once_and_no_speaker_in_common(
    own_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(own_corpus), "-o", str(tmp_path / "halves")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    whole = rows_of(own_corpus / "train.jsonl")
    halves = [rows_of(tmp_path / "halves" / name / "train.jsonl") for name in ("first", "second")]
    assert sorted(row["id"] for half in halves for row in half) == sorted(row["id"] for row in whole)
    first, second = ({row["speaker"] for row in half} for half in halves)
    assert first
    assert second
    assert not first & second
    assert all(Path(row["audio"]).is_file() for half in halves for row in half)
    tests = [rows_of(tmp_path / "halves" / name / "test.jsonl") for name in ("first", "second")]
    assert tests[0] == tests[1]
    assert [row["id"] for row in tests[0]] == [row["id"] for row in rows_of(own_corpus / "test.jsonl")]
