"""`--depth auto`: the choice by hand, its ends equal the fixed depths, and its file is checked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from foldray import FoldPlan
from foldray.data import prepare as preparation
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.evaluation import provenance
from foldray.evaluation.provenance import find_model
from foldray.models.save_load import save_model
from foldray.results.auto_depth import AutoDepth, AutoPoint, read_auto, write_auto
from foldray.stages import calibrate
from foldray.stages.calibrate import calibrate_stage
from foldray.stages.scoring_corpus import scoring_corpus
from foldray.stages.transcribe import transcribe_stage
from foldray.training.job import TrainJob
from foldray.transcription.auto import Measured, choose, curve_of
from foldray.transcription.transcript import Transcript
from tests.support import corpora
from tests.support.commands import call
from tests.support.tiny import TOKENIZER, folded

pytest_plugins = ["tests.support.finished_run"]

MEASURED = Measured(
    errors_DN=np.array([[0, 3, 1, 0], [0, 1, 0, 0]]),
    confidence_DN=np.array([[0.9, 0.2, 0.6, 0.8], [0.9, 0.9, 0.9, 0.9]]),
    words_N=np.array([5, 5, 5, 5]),
    seconds_N=np.array([1.0, 1.0, 2.0, 1.0]),
    macs_D=np.array([10.0, 30.0]),
)


def test_a_threshold_costs_and_errs_as_counted_by_hand() -> None:
    point = MEASURED.at(0.7)
    assert point == AutoPoint(0.7, (10 * 5 + 30 * 3) / 5, 1 / 20, (0.5, 0.5))
    assert MEASURED.at(0.0) == AutoPoint(0.0, 10.0, 4 / 20, (1.0, 0.0))
    assert [each.wer for each in curve_of(MEASURED)] == [4 / 20, 2 / 20, 1 / 20, 1 / 20, 1 / 20]


def test_the_cheapest_threshold_within_the_loss_is_chosen() -> None:
    more = np.array([0, 2, 1, 0])
    bound = (more.sum() + 1.645 * 2 * more.std(ddof=1)) / 20
    assert MEASURED.loss_bound(0.0) == pytest.approx(bound)
    assert MEASURED.loss_bound(0.85) == 0.0
    cheap = choose(MEASURED, bound)
    assert cheap is not None
    assert (cheap.threshold, cheap.shares) == (0.0, (1.0, 0.0))
    exact = choose(MEASURED, 0.0)
    assert exact is not None
    assert (exact.threshold, exact.wer) == (pytest.approx(0.7), MEASURED.deepest.wer)
    assert choose(replace(MEASURED, macs_D=np.array([29.0, 30.0])), 0.0) is None, "two passes cost more than one"


@pytest.fixture
def model(tmp_path: Path) -> str:
    save_model(folded("parakeet", FoldPlan(2, (2, 4, 6))).eval(), tmp_path / "model", TOKENIZER)
    return str(tmp_path / "model")


def calibration(threshold: float) -> AutoDepth:
    point = AutoPoint(threshold, 1.0, 0.1, (1.0, 0.0, 0.0))
    return AutoDepth((2, 4, 6), threshold, 0.003, "corpus", "valid", 10, point, point, (point,))


def test_its_ends_are_the_fixed_depths(model: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = []
    for i in range(3):
        files.append(str(tmp_path / f"{i}.wav"))
        soundfile.write(files[-1], 0.1 * rng.standard_normal(16_000 * (i + 1)), 16_000)

    def found(depth: object) -> list[Transcript]:
        results = [each for _, each in transcribe_stage(model, "", files, depth, words=True)[1]]  # type: ignore[arg-type]
        assert all(isinstance(each, Transcript) for each in results)
        return results  # type: ignore[return-value]

    for threshold, depth in ((0.0, 2), (1.1, 6)):
        write_auto(model, calibration(threshold))
        assert found("auto") == found(depth)
    confidences = [each.confidence for each in found(2)]
    assert len(set(confidences)) == 3
    write_auto(model, calibration(sorted(confidences)[1]))
    assert [each.depth == 2 for each in found("auto")] == [value >= sorted(confidences)[1] for value in confidences]


def test_a_missing_or_damaged_calibration_is_one_line(model: str) -> None:
    with pytest.raises(UserError, match=r"^--depth: auto needs a calibration; run `foldray calibrate MODEL` first"):
        read_auto(model, (2, 4, 6))
    write_auto(model, calibration(0.5))
    assert read_auto(model, (2, 4, 6)) == calibration(0.5)
    with pytest.raises(UserError, match=r"auto.json: has the depths \[2, 4, 6\], the model \[2, 8\]"):
        read_auto(model, (2, 8))
    file = Path(model, "auto.json")
    values = json.loads(file.read_text())
    for damaged in ({**values, "threshold": "high"}, {**values, "more": 1}, {**values, "curve": [1]}, []):
        file.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"auto.json: is damaged"):
            read_auto(model, (2, 4, 6))


@pytest.mark.usefixtures("finished")
def test_a_raw_corpus_is_prepared_with_the_split_to_check(
    own_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "_write_shards", corpora._write_serially)
    (own_corpus / "valid.jsonl").write_text((own_corpus / "test.jsonl").read_text().replace('"test-', '"valid-'))
    found = find_model("run", str(tmp_path / "store"))

    def splits(also: str) -> dict[str, int]:
        return read_manifest(scoring_corpus(found, str(own_corpus), "valid", also=also).uri).rows_by_split

    alone = splits("")
    assert splits("nowhere") == alone
    assert splits("test").keys() == {*alone, "test"}
    monkeypatch.setattr(calibrate, "measure", lambda *_: MEASURED)
    done = calibrate_stage("run", str(tmp_path / "store"), str(own_corpus), loss=1.0)
    assert done["check"] is not None
    assert done["check"][0] == "test"


def test_a_copy_in_the_cache_of_the_hub_is_not_calibrated(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr(provenance, "copy_fold", lambda _: model)
    with pytest.raises(UserError, match=r"^org/fold: is in the hub's cache, .*; copy it with `hf download"):
        calibrate_stage("org/fold", "./store")


@pytest.mark.main
def test_a_calibrated_run_transcribes_and_reports_its_curve(
    capsys: pytest.CaptureFixture[str], finished: TrainJob, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    done = calibrate_stage("run", store, loss=1.0)
    assert done["auto"] is not None
    assert done["auto"].chosen.shares[0] == 1.0, "any loss is allowed: the shallowest depth always counts"
    assert done["check"] is not None
    code, out, err = call(capsys, "calibrate", "run", "--store", store, "--loss", "100", "--json")
    assert code == 0, err
    assert json.loads(out)["auto"]["threshold"] == done["auto"].threshold
    code, out, err = call(capsys, "calibrate", "run", "--store", store, "--split", "nowhere")
    assert code == 2
    assert err.startswith("--split: the corpus has no 'nowhere'; it has ")
    assert Path(finished.run, "model", "auto.json").exists()
