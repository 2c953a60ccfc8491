"""Graphs that begin with the waveform compute the stock extractor's features."""

from types import SimpleNamespace

import pytest
import torch

from foldray.errors import UserError
from foldray.models.families import FAMILIES
from foldray.models.features import build_extractor, extract_features, output_frames, whole_frames
from foldray.models.fold import ctc_logits
from foldray.models.runtimes.ctc import SHERPA_EPS, TextLogProbs, check_nemo, undo_normalization
from foldray.models.runtimes.features import WaveformInputs
from foldray.models.runtimes.whisper import UNWANTED, _rules
from foldray.models.tokenizer import SpecialTokens, Tokenizer
from tests.support.runtimes import sweep
from tests.support.tiny import CONFIGS, TOKENIZER, tiny_model

CTC = [name for name, (family, _) in CONFIGS.items() if FAMILIES[family].ctc]


@pytest.mark.parametrize("name", CTC)
def test_features_equal_the_extractors(name: str) -> None:
    model = tiny_model(name, num_layers=1)
    for seconds in (1.03, 0.77):
        samples_T = sweep(seconds)
        stock = extract_features(model, build_extractor(model), [whole_frames(model, samples_T.numpy())])
        inputs = WaveformInputs(model)(samples_T[None])
        assert inputs.keys() == stock.keys()
        assert all(int(inputs[key].min()) == 1 for key in inputs if key.endswith("mask"))
        with torch.no_grad():
            logits_BTV, expected_BTV = (ctc_logits(model(**each)) for each in (inputs, stock))
        frames = output_frames(model, [len(samples_T)])[0]
        assert logits_BTV.shape[1] == frames
        torch.testing.assert_close(logits_BTV, expected_BTV[:, :frames], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loudness", [0.003, 0.1, 1.0])
def test_the_loudness_that_sherpa_onnx_takes_away_is_restored(loudness: float) -> None:
    samples_1N = sweep(2.0)[None] * loudness
    centred_1N = samples_1N - samples_1N.mean()
    normalized_1N = centred_1N / (centred_1N.pow(2).mean() + SHERPA_EPS).sqrt()
    torch.testing.assert_close(undo_normalization(normalized_1N), centred_1N, rtol=0.02, atol=0)
    assert torch.equal(undo_normalization(torch.zeros(1, 9)), torch.zeros(1, 9))


def test_a_runtime_that_knows_only_blanks_says_what_foldray_says() -> None:
    tokens = len(TOKENIZER)
    logits_BTV = 5 * torch.randn(3, 400, tokens + 1, generator=torch.Generator().manual_seed(0))
    best_BT = TextLogProbs(tokens)(logits_BTV).argmax(-1)
    assert best_BT.max() < tokens
    for before_T, after_T in zip(logits_BTV.argmax(-1), best_BT, strict=True):
        texts = [TOKENIZER.decode(torch.unique_consecutive(ids_T).tolist()) for ids_T in (before_T, after_T)]
        assert texts[0] == texts[1]
        assert 1 not in after_T


@pytest.mark.parametrize(("setting", "value"), [("hop_length", 200), ("preemphasis", None), ("n_fft", 1024)])
def test_the_setting_of_features_that_onnx_asr_lacks_is_named(setting: str, value: object) -> None:
    model = tiny_model("parakeet", num_layers=1)
    model.extractor = build_extractor(model)
    model.extractor.feature_size = 80
    check_nemo(model)
    usual = getattr(model.extractor, setting)
    setattr(model.extractor, setting, value)
    with pytest.raises(UserError, match=f"computes features with {setting} {usual}, this model takes {value}; use"):
        check_nemo(model)


def test_suppressed_tokens_that_the_model_lacks_are_left_out() -> None:
    tokenizer = Tokenizer(["a", "b", "c"], special=SpecialTokens({"": [0]}, 1, 8, "{}"))
    model = SimpleNamespace(
        generation_config=SimpleNamespace(suppress_tokens=[0, 50_257, -1], begin_suppress_tokens=[2, 99]),
        config=SimpleNamespace(vocab_size=4),
    )
    always, first, last = ([score == UNWANTED for score in rule] for rule in _rules(model, tokenizer))
    assert always == [True, False, False, True], "the last one has no token"
    assert first == [False, False, True, False]
    assert last == [True, False, True, True]
