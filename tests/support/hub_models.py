"""Fixtures and helpers for tests of models on the hub.

`pytest_plugins = ["tests.support.hub_models"]` makes `stock` and `hub` available to a test module.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from foldray import FoldPlan, fold_checkpoint
from foldray.errors import UserError
from tests.support.hub import Hub
from tests.support.tiny import tiny_model

PLAN = FoldPlan(2, (2, 4))
TOKEN = "hf_secret0123456789"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three layers with a feature extractor that is not the family's usual one."""
    folder = tmp_path_factory.mktemp("stock")
    tiny_model("wav2vec2", 3).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub(TOKEN) as hub:
        hub.use(monkeypatch, tmp_path / "hf")
        yield hub


def pickled(files: Files) -> Files:
    return dict.fromkeys(("pytorch_model.bin",), b"") | {n: c for n, c in files.items() if "safetensors" not in n}


def assert_equal(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Assert that two folds of `stock` have the same weights and its feature extractor."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert one.extractor.to_dict() == other.extractor.to_dict()
    assert not one.extractor.do_normalize


def refusal(name: str) -> str:
    """The one line in which folding a hub model fails."""
    with pytest.raises(UserError) as failed:
        fold_checkpoint(name, PLAN)
    assert "\n" not in str(failed.value)
    assert TOKEN not in str(failed.value)
    return str(failed.value)
