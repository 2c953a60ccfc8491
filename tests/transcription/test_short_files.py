"""Transcribing files: each that can't be used has its own error, all others their text."""

import glob
import json
import re
from pathlib import Path

import numpy as np
import pytest

from foldray import FoldPlan, storage
from foldray.errors import UserError
from foldray.models.save_load import save_model
from foldray.transcription.inputs import find_inputs
from tests.support.corpora import encode_wav
from tests.support.tiny import TOKENIZER, families, folded
from tests.support.transcripts import texts_of


@pytest.mark.parametrize(
    "name", families(["wav2vec2", "wav2vec2-bert", "sew", "parakeet", "data2vec-audio", "conformer"])
)
def test_files_too_short_for_the_model_have_an_error_and_others_their_text(name: str, tmp_path: Path) -> None:
    model = folded(name, FoldPlan(2, (2, 4))).eval()
    save_model(model, tmp_path / "model", TOKENIZER)
    files = []
    for samples in (1, 80, 320, 500, 800, 1_600, 16_000):
        files.append(str(tmp_path / f"{samples}.wav"))
        Path(files[-1]).write_bytes(encode_wav(0.3 * np.sin(np.arange(1, samples + 1) * 0.05)))
    found = texts_of(str(tmp_path / "model"), [*files, str(tmp_path / "nowhere.wav")])
    assert len(found) == 8
    assert isinstance(found[6], str)
    assert str(found[7]) == f"{tmp_path / 'nowhere.wav'}: does not exist"
    errors = [each.problem for each in found[:6] if isinstance(each, UserError)]
    assert all(" s give no frame)" in error for error in errors)
    assert name == "parakeet" or len(errors) >= 1


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"audio": "a\0b.wav"}, r"can't be used \(unreadable: .*null"),
        ({"audio": "\ud800.wav"}, r"(can't be used \(unreadable: |does not exist)"),
        ({"audio": "nowhere.wav"}, "does not exist"),
    ],
)
def test_a_name_that_no_file_has_costs_no_other_row_its_text(row: dict[str, str], line: str, tmp_path: Path) -> None:
    save_model(folded("wav2vec2", FoldPlan(2, (2, 4))).eval(), tmp_path / "model", TOKENIZER)
    (tmp_path / "a.wav").write_bytes(encode_wav(0.3 * np.sin(np.arange(1, 16_001) * 0.05)))
    listed = tmp_path / "rows.jsonl"
    listed.write_text("".join(json.dumps(each) + "\n" for each in (row, {"audio": "a.wav"})))
    bad, good = texts_of(str(tmp_path / "model"), [str(listed)])
    assert isinstance(bad, UserError)
    assert re.search(line, bad.problem)
    assert isinstance(good, str)


def test_a_manifest_without_rows_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match=r"rows.jsonl: has no rows; write a JSON object with an audio field"):
        list(find_inputs([str(tmp_path / "rows.jsonl")]))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("s3://b/calls/**/a.wav", ["a.wav", "x/a.wav", "x/y/a.wav"]),
        ("s3://b/calls/*/a.wav", ["x/a.wav"]),
        ("s3://b/calls/**/*.wav", ["a.wav", "data.wav", "x/a.wav", "x/y/a.wav"]),
        ("s3://b/calls/x/**/*a.wav", ["x/a.wav", "x/y/a.wav"]),
    ],
)
def test_patterns_of_buckets_match_as_those_of_folders(
    pattern: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.wav", "data.wav", "x/a.wav", "x/y/a.wav", "x/y/b.flac"]
    # https://github.com/iina/iina/issues/5384: what macOS leaves beside each file.
    names += ["._a.wav", "x/._a.wav", ".Trashes/a.wav", "x/.Trashes/y/a.wav"]
    for name in names:
        (tmp_path / "calls" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "calls" / name).write_bytes(b"")
    here = sorted(glob.glob(str(tmp_path / pattern.removeprefix("s3://b/")), recursive=True))
    assert here == [str(tmp_path / "calls" / name) for name in found]

    def listed(uri: str) -> dict[str, int]:
        start = uri.removeprefix("s3://b/calls").strip("/")
        return {name.removeprefix(start).lstrip("/"): 0 for name in names if name.startswith(start)}

    monkeypatch.setattr(storage, "list_tree", listed)
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    assert [each.id.removeprefix("s3://b/calls/") for each in find_inputs([pattern])] == found
