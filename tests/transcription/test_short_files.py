"""Transcribing files: each that can't be used has its own error, all others their text."""

from pathlib import Path

import numpy as np
import pytest

from foldray import FoldPlan
from foldray.errors import UserError
from foldray.models.save_load import save_model
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
