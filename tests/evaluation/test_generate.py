"""Text of models with a decoder: foldray's is that of stock `generate`, for each utterance of a padded batch."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, WhisperForConditionalGeneration

from foldray import FoldPlan, fold, unroll
from foldray.data.audio import decode
from foldray.evaluation.generate import generate_texts
from foldray.models.features import build_extractor, extract_features
from foldray.models.fold import set_depths
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.models.weight_files import check_finite
from tests.support.paths import SHARED
from tests.support.seq2seq import write_whisper
from tests.support.tiny import noise

TINY_EN = SHARED / "models/whisper-tiny-en"


def test_generated_texts_are_those_of_the_stock_model(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path)
    stock = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    folded = fold(copy.deepcopy(stock), FoldPlan(3, (3, 5)))
    features = extract_features(folded, build_extractor(folded), [noise(n, seed=n).numpy() for n in (1, 2, 3)])
    tokenizer, theirs = read_stock_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    for depth in (3, 5):
        set_depths(folded, depth)
        ours = generate_texts(folded, features, tokenizer, seconds=3.0)
        ids = unroll(folded, depth).generate(**features, max_new_tokens=52)
        expected = [" ".join(text.split()) for text in theirs.batch_decode(ids, skip_special_tokens=True)]
        assert ours == expected
        assert len(set(ours)) > 1, "texts depend on the audio"


@pytest.mark.main
@pytest.mark.skipif(not TINY_EN.exists(), reason="the pretrained Whisper is not here")
def test_a_pretrained_whisper_writes_what_it_writes_in_transformers() -> None:
    stock: Any = WhisperForConditionalGeneration.from_pretrained(TINY_EN, dtype=torch.float32).eval()
    check_finite(stock, str(TINY_EN), "checkpoint")
    files = sorted((SHARED / "data/an4/audio/test").rglob("*.*"))[:3]
    features = extract_features(stock, build_extractor(stock), [decode(file.read_bytes()) for file in files])
    expected = AutoTokenizer.from_pretrained(TINY_EN).batch_decode(stock.generate(**features), skip_special_tokens=True)
    folded = fold(stock, FoldPlan(4, (4,)))
    texts = generate_texts(folded, features, read_stock_tokenizer(str(TINY_EN)), seconds=30.0)
    assert texts == [text.strip() for text in expected]
    assert all(texts)
