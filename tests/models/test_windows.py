"""Whisper's encoder on windows as long as the audio: the full window is stock's, shorter ones are a cut model's."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from foldray import FoldPlan, fold, unroll
from foldray.errors import UserError
from foldray.models.families import FAMILIES
from foldray.models.features import WINDOW_STEP, build_extractor, extract_features
from foldray.models.stock import load_stock
from tests.support.seq2seq import write_whisper
from tests.support.tiny import noise

TOKENS = torch.tensor([[290, 294, 5, 6, 7]])


def stock(folder: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(write_whisper(folder)).eval()


@torch.no_grad()
def logits(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    return model(input_features=features, decoder_input_ids=TOKENS, use_cache=False).logits


def test_the_full_window_is_stock_to_the_bit_also_after_a_shorter_one(tmp_path: Path) -> None:
    model = stock(tmp_path)
    features = torch.randn(1, 80, 1200, generator=torch.Generator().manual_seed(0))
    expected = logits(model, features)
    folded = fold(copy.deepcopy(model), FoldPlan(3, (3,)))
    assert torch.equal(logits(folded, features), expected)
    logits(folded, features[:, :, :320])
    assert torch.equal(logits(folded, features), expected)
    assert torch.equal(logits(unroll(folded, 3), features), expected)
    assert folded.config.max_source_positions == 600, "the model's own configuration never changes"


def test_a_shorter_window_is_a_stock_model_with_fewer_positions(tmp_path: Path) -> None:
    model = stock(tmp_path)
    config = copy.deepcopy(model.config)
    config.max_source_positions = 160
    state = model.state_dict()
    name = "model.encoder.embed_positions.weight"
    cut = WhisperForConditionalGeneration(config).eval()
    cut.load_state_dict({**state, name: state[name][:160]})
    features = torch.randn(1, 80, 320, generator=torch.Generator().manual_seed(0))
    folded = fold(model, FoldPlan(3, (3,)))
    assert torch.equal(logits(folded, features), logits(cut, features))
    assert folded.state_dict()[name].shape == (600, 32), "all positions are saved"


def test_a_failed_pass_leaves_the_length_as_it_was(tmp_path: Path) -> None:
    folded = fold(stock(tmp_path), FoldPlan(3, (3,)))
    with pytest.raises(RuntimeError):
        logits(folded, torch.zeros(1, 40, 320))
    for length in (1202, 321):
        with pytest.raises(UserError, match="takes a multiple of 2 up to 1200"):
            logits(folded, torch.zeros(1, 80, length))
    assert logits(folded, torch.zeros(1, 80, 1200)).shape == (1, 5, 296)
    with pytest.raises(ValueError, match="1200"):
        logits(unroll(folded, 3), torch.zeros(1, 80, 320))


@pytest.mark.parametrize(
    ("window", "seconds", "length"), [("full", 1.0, 1200), ("audio", 1.0, 128), ("audio", 12, 1200)]
)
def test_features_have_the_length_of_the_window(window: str, seconds: float, length: int, tmp_path: Path) -> None:
    folder = str(write_whisper(tmp_path))
    config = stock(tmp_path).config
    config.foldray_window = window
    model, _ = load_stock(FAMILIES["whisper"], folder, config, seed=0)
    waveforms = [noise(seconds).numpy(), noise(0.5).numpy()]
    features = extract_features(model, build_extractor(model), waveforms)["input_features"]
    assert features.shape == (2, 80, length)
    assert length * 160 % WINDOW_STEP == 0 or length == 1200


def test_audio_beyond_the_window_is_refused_not_cut(tmp_path: Path) -> None:
    model, _ = load_stock(FAMILIES["whisper"], str(write_whisper(tmp_path)), stock(tmp_path).config, seed=0)
    with pytest.raises(UserError, match=r"12\.5 s are longer than the model's window of 12 s; cut it"):
        extract_features(model, build_extractor(model), [noise(12.5).numpy()])
