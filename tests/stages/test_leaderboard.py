"""`foldray evaluate --leaderboard`: the files that the Open ASR Leaderboard scores, field by field."""

import csv
import json
from pathlib import Path

import pytest

from foldray.data import prepare as preparation
from foldray.data.text import normalise
from foldray.evaluation.leaderboard import write_leaderboard
from foldray.evaluation.score import DepthScore, Transcript
from foldray.models.save_load import load_model
from foldray.training.job import TrainJob
from tests.support import corpora
from tests.support.commands import call
from tests.support.rows import row as made

pytest_plugins = ["tests.support.finished_run"]


@pytest.fixture
def written(own_corpus: Path) -> tuple[Path, dict[str, str]]:
    """A raw corpus whose test set has capitals, punctuation and numbers; and its texts by id."""
    file = own_corpus / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["text"] = f"{row['text'].capitalize()}, {number}!"
    rows[0]["text"] = "42"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return own_corpus, {row["id"]: row["text"] for row in rows}


def parse(name: str) -> tuple[str, str]:
    """Model and test set of a file's name, as the leaderboard's scorer splits it."""
    model, dataset = name[name.index("MODEL_") :].split("DATASET_")
    model = model.replace("MODEL_", "").rstrip("_")
    return model.replace("-", "/", 1), dataset.removesuffix(".jsonl")


@pytest.mark.main
def test_each_depth_has_its_file_with_texts_as_they_were_written(
    finished: TrainJob,
    written: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(preparation, "_write_shards", corpora._write_serially)
    raw, texts = written
    board = tmp_path / "board"
    given = ("--data", str(raw), "--store", str(tmp_path / "store"), "--leaderboard", str(board), "--json")
    code, out, err = call(capsys, "evaluate", "run", *given)
    assert code == 0, err
    told = json.loads(out)
    *files, table = map(Path, told["leaderboard"])
    corpus = told["rows"][0]["corpus"]
    assert [parse(file.name) for file in files] == [
        (f"foldray/run-depth-{depth}", f"{corpus}_voices_test") for depth in (2, 3, 4)
    ]
    shown = list(csv.DictReader(table.open()))
    stored = sum(each.numel() for each in load_model(f"{finished.run}/model").parameters())
    for file, row, line in zip(files, told["rows"], shown, strict=True):
        data = [json.loads(each) for each in file.read_text().splitlines()]
        assert {each["audio_filepath"]: each["text"] for each in data} == texts
        assert all(list(each) == ["audio_filepath", "duration", "time", "text", "pred_text"] for each in data)
        rtfx = sum(each["duration"] for each in data) / sum(each["time"] for each in data)
        assert (line["RTFx"], line["Size (B)"]) == (f"{rtfx:.2f}", f"{stored / 1e9:.6f}")
        assert (line["depth"], line["parameters_stored"]) == (str(row["depth"]), str(stored))
        assert (line["model"], line["file"]) == (f"foldray/run-depth-{row['depth']}", file.name)
        assert row["rtfx"] == pytest.approx(rtfx)
        said = [normalise(each["text"], "english") for each in data]
        assert row["num_words"] == sum(len(text.split()) for text in said)
        assert row["num_utterances"] == len(data) - 1, "a reference without letters does not count"


@pytest.mark.main
def test_a_prepared_corpus_is_written_as_it_is_and_the_note_says_so(
    finished: TrainJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, board = Path(finished.corpus).name, tmp_path / "board"
    given = ("--store", str(tmp_path / "store"), "--leaderboard", str(board), "--depths", "3")
    code, out, err = call(capsys, "evaluate", "run", *given)
    assert code == 0, err
    assert f"note      references are those of {corpus}, normalised (corpus.text=english); give --data" in err
    (file,) = board.glob("*.jsonl")
    assert out.splitlines()[-2:] == [str(file), str(board / "leaderboard.csv")]
    assert all(text == text.upper() for text in (json.loads(line)["text"] for line in file.open()))


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_scored(
    finished: TrainJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    given = ("--store", str(tmp_path / "store"), "--leaderboard", str(tmp_path / "file" / "board"))
    code, out, err = call(capsys, "evaluate", Path(finished.run).name, *given)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("--leaderboard: ")


def test_a_long_name_keeps_its_depths_apart(tmp_path: Path) -> None:
    model, rows = f"foldray/{'run' * 40}", [made(depth=depth) for depth in (2, 3, 12)]
    scores = [DepthScore(each["depth"], 0.0, 0.0, 2.0, 0, [], [Transcript("a", 1.0, 0.5, "A", "A")]) for each in rows]
    *files, _ = write_leaderboard(str(tmp_path), model, rows, scores)
    names = [Path(file).name for file in files]
    assert [name.partition("_DATASET_")[0][-8:] for name in names] == ["-depth-2", "-depth-3", "depth-12"]
    assert {len(name.partition("_DATASET_")[0]) for name in names} == {len("MODEL_") + 80}
