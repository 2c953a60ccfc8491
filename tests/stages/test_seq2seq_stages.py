"""A model with a decoder, saved, exported and transcribing: stock transformers writes the same texts."""

import re
from pathlib import Path

import pytest
from transformers import pipeline

from foldray import FoldPlan
from foldray.data.audio import decode
from foldray.errors import UserError
from foldray.models.from_checkpoint import fold_checkpoint
from foldray.models.save_load import save_model
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.stages.export import export_model
from foldray.stages.transcribe import transcribe_stage
from foldray.transcription.transcript import Transcript
from tests.support.corpora import encode_wav
from tests.support.seq2seq import write_whisper
from tests.support.tiny import noise
from tests.support.transcripts import texts_of


@pytest.fixture
def folded(tmp_path: Path) -> str:
    """A folder with a fold of a tiny Whisper, both stacks 2 -> 3."""
    stock = write_whisper(tmp_path / "stock", layers=2)
    model = fold_checkpoint(stock, FoldPlan(2, (2, 3)), decoder=FoldPlan(2, (2, 3)))
    save_model(model, tmp_path / "folded", read_stock_tokenizer(str(stock)))
    return str(tmp_path / "folded")


@pytest.fixture
def recording(tmp_path: Path) -> str:
    """Five seconds of noise."""
    file = tmp_path / "noise.wav"
    file.write_bytes(encode_wav(noise(5.0).numpy()))
    return str(file)


@pytest.mark.main
@pytest.mark.parametrize("depth", [2, 3])
def test_stock_pipelines_of_an_export_write_what_transcribe_writes(
    folded: str, recording: str, depth: int, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    export_model(folded, str(tmp_path / "store"), "unrolled", out, depth)
    ((_, ours),) = transcribe_stage(folded, "", [recording], depth)[1]
    assert isinstance(ours, Transcript)
    waveform = decode(Path(recording).read_bytes())
    # Since transformers 5 pipelines search with five beams unless told otherwise.
    stock = pipeline("automatic-speech-recognition", model=out, generate_kwargs={"num_beams": 1})
    theirs = stock({"raw": waveform, "sampling_rate": 16_000})
    expected = re.sub(r"<\|\w+\|>", "", theirs["text"])  # a random model writes languages, which stock code shows
    assert ours.text == " ".join(expected.split())
    assert ours.text
    assert "limit of tokens" in ours.notes[0], "a random model ends no text"


def test_an_int8_export_transcribes(folded: str, recording: str, tmp_path: Path) -> None:
    export_model(folded, str(tmp_path / "store"), "int8", str(tmp_path / "out"))
    (text,) = texts_of(str(tmp_path / "out"), [recording])
    assert text


def test_audio_longer_than_the_window_is_cut(folded: str, recording: str, tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    long.write_bytes(encode_wav(noise(32.5).numpy()))
    texts = texts_of(folded, [str(long), recording])
    assert all(isinstance(text, str) and text for text in texts)


def test_other_ways_of_decoding_are_refused(folded: str, recording: str, tmp_path: Path) -> None:
    for decoding in ("ctc", "joint"):
        with pytest.raises(UserError, match=f"--decoding: {decoding} needs CTC, which WhisperFor"):
            transcribe_stage(folded, str(tmp_path), [recording], None, decoding)


def test_a_language_that_the_model_lacks_is_not_taken_for_english(recording: str, tmp_path: Path) -> None:
    stock = write_whisper(tmp_path / "stock", layers=2, multilingual=True)
    model = fold_checkpoint(stock, FoldPlan(2, (2, 3)))
    save_model(model, tmp_path / "folded", read_stock_tokenizer(str(stock)))
    with pytest.raises(UserError, match=r"^--language: the model has no 'german'; use one of de, en"):
        texts_of(str(tmp_path / "folded"), [recording], language="german")
    assert isinstance(texts_of(str(tmp_path / "folded"), [recording], language="de-AT")[0], str)
