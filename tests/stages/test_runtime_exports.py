"""Exports for onnx-asr and sherpa-onnx: the real packages write the texts of `foldray transcribe`."""

import shutil
from pathlib import Path

import jiwer
import pytest

from foldray import FoldPlan, UserError
from foldray.models.families import FAMILIES
from foldray.models.from_checkpoint import fold_checkpoint
from foldray.models.runtimes.layouts import quantize
from foldray.models.save_load import save_model
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.models.train_tokenizer import bpe_tokenizer
from foldray.stages.export import export_model
from foldray.stages.transcribe import transcribe_stage
from foldray.transcription.transcript import Transcript
from tests.support.commands import call
from tests.support.runtimes import recordings, run_readme, save_ctc_fold, save_whisper_fold
from tests.support.seq2seq import write_moonshine
from tests.support.tiny import CONFIGS, TOKENIZER

BPE = bpe_tokenizer(["SIL SILO SILK LOSS OIL", "LISSOL KILO SILL"] * 9, 20)
"""With a sub-word that sherpa-onnx would drop."""


def texts_of(folder: str, files: list[str]) -> list[str]:
    """What foldray makes of files at depth 1."""
    texts = []
    for file in files:  # one by one: padding reaches valid frames in some families
        ((_, found),) = transcribe_stage(folder, "", [file], 1, words=False)[1]
        assert isinstance(found, Transcript)
        texts.append(found.text)
    assert all(len(text) > 4 for text in texts), texts
    return texts


@pytest.mark.main
def test_onnx_asr_reads_a_ctc_export(tmp_path: Path) -> None:
    fold = save_ctc_fold("parakeet", tmp_path / "fold", TOKENIZER)
    files = recordings(tmp_path)
    texts = texts_of(fold, files)
    told = export_model(fold, ".", "onnx-asr", str(tmp_path / "out"), 1)
    assert set(told["files"]) == {"README.md", "config.json", "export.json", "model.onnx", "vocab.txt"}
    assert [run_readme(tmp_path / "out", file) for file in files] == texts


@pytest.mark.main
def test_sherpa_onnx_reads_a_ctc_export(tmp_path: Path) -> None:
    assert "SIL" in BPE.vocabulary
    fold = save_ctc_fold("conformer", tmp_path / "fold", BPE)
    files = recordings(tmp_path)
    texts = texts_of(fold, files)
    assert any("SIL" in text for text in texts), texts
    told = export_model(fold, ".", "sherpa-onnx", str(tmp_path / "out"), 1)
    assert set(told["files"]) == {"README.md", "export.json", "model.onnx", "tokens.txt"}
    # It writes a space for each beginning of a word, also where one follows another.
    assert [" ".join(run_readme(tmp_path / "out", file).split()) for file in files] == texts

    small = quantize(tmp_path / "out" / "model.onnx")
    readme = tmp_path / "out" / "README.md"
    readme.write_text(readme.read_text().replace("model.onnx", small.name))
    said = [run_readme(tmp_path / "out", file) for file in files]
    assert jiwer.cer(texts, said) < 0.3, (texts, said)


ONE_EACH = {FAMILIES[family].extractor: name for name, (family, _) in reversed(CONFIGS.items()) if FAMILIES[family].ctc}
"""A family for each feature extractor; tests/stages/test_export.py exports what else differs between families."""


@pytest.mark.soak
@pytest.mark.parametrize("name", [*ONE_EACH.values(), "wav2vec2-stable"])
def test_sherpa_onnx_reads_every_kind_of_features(name: str, tmp_path: Path) -> None:
    fold = save_ctc_fold(name, tmp_path / "fold", TOKENIZER)
    files = recordings(tmp_path)
    export_model(fold, ".", "sherpa-onnx", str(tmp_path / "out"), 1)
    assert [" ".join(run_readme(tmp_path / "out", file).split()) for file in files] == texts_of(fold, files)


WHISPERS = [
    pytest.param("onnx-asr", False, "audio", marks=pytest.mark.main),
    pytest.param("sherpa-onnx", True, "audio", marks=pytest.mark.main),
    pytest.param("onnx-asr", True, "full", marks=pytest.mark.soak),
    pytest.param("sherpa-onnx", False, "full", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("runtime", "multilingual", "window"), WHISPERS)
def test_whisper(runtime: str, multilingual: bool, window: str, tmp_path: Path) -> None:
    fold = save_whisper_fold(tmp_path, multilingual=multilingual, window=window)
    files = recordings(tmp_path)
    texts = texts_of(fold, files)
    told = export_model(fold, ".", runtime, str(tmp_path / "out"), 1)
    assert sum(file.endswith(".onnx") for file in told["files"]) == 2
    assert [run_readme(tmp_path / "out", file) for file in files] == texts


@pytest.mark.soak
def test_int8_is_a_file_of_its_own_name(tmp_path: Path) -> None:
    fold = save_ctc_fold("parakeet", tmp_path / "fold", TOKENIZER)
    files = recordings(tmp_path)
    for runtime in ("onnx-asr", "sherpa-onnx", "onnx"):
        told = export_model(fold, ".", runtime, str(tmp_path / runtime), 1, "int8")
        assert [file for file in told["files"] if ".onnx" in file] == ["model.int8.onnx"]
        if runtime != "onnx":
            said = [run_readme(tmp_path / runtime, file) for file in files]
            assert jiwer.cer(texts_of(fold, files), said) < 0.3


def test_what_a_runtime_does_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock = {name: str(tmp_path / name) for name in ("wav2vec2", "parakeet", "bare")}
    for name in ("wav2vec2", "parakeet"):
        save_ctc_fold(name, Path(stock[name]), TOKENIZER, num_mel_bins=40)
    shutil.copytree(stock["wav2vec2"], stock["bare"], ignore=shutil.ignore_patterns("vocab.json"))
    for name, arguments, problem in (
        ("wav2vec2", "--format onnx-asr", "--format: onnx-asr has no features of wav2vec2; use sherpa-onnx"),
        ("parakeet", "--format onnx-asr", "--format: onnx-asr computes NeMo's 80 or 128 mel bins, this model takes 40"),
        ("bare", "--format sherpa-onnx", f"{stock['bare']}: has no tokenizer, which sherpa-onnx needs"),
        ("parakeet", "--format int8 --precision int8", "--precision: applies to onnx, onnx-asr, sherpa-onnx; "),
        ("parakeet", "--format onnx --precision int4", "--precision: must be one of float32, int8 (got 'int4')"),
    ):
        code, out, err = call(capsys, "export", stock[name], *arguments.split(), "-o", str(tmp_path / "new"))
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert err.startswith(problem), err
        assert not (tmp_path / "new").exists()


def test_a_decoder_that_no_runtime_reads(tmp_path: Path) -> None:
    stock = str(write_moonshine(tmp_path / "stock", layers=1))
    save_model(fold_checkpoint(stock, FoldPlan(1, (1, 2))), tmp_path / "fold", read_stock_tokenizer(stock))
    for runtime in ("onnx-asr", "sherpa-onnx"):
        with pytest.raises(UserError, match=f"{runtime} reads CTC models and Whisper, not moonshine; use unrolled"):
            export_model(str(tmp_path / "fold"), ".", runtime, str(tmp_path / "out"))
