"""Costs from configurations alone: the paper's savings, and counts against the real model."""

import pytest
import torch

from foldray import FoldPlan, fold, unroll
from foldray.costs import costs_of, plan_costs
from foldray.plan import Private
from foldray.recipes import load_recipe
from tests.tiny import CONFIGS, tiny_model


@pytest.mark.parametrize(
    ("recipe", "fold_fields", "unshared", "saved"),
    [
        ("wav2vec2-base-8", {}, 94.39e6, 30.0),
        ("hubert-large-16", {}, 315.4e6, 31.9),
        ("hubert-large-16", {"num_layers": 12, "depths": (12, 24)}, 315.4e6, 47.9),
    ],
)
def test_savings_of_the_paper(recipe: str, fold_fields: dict, unshared: float, saved: float) -> None:
    spec = load_recipe(recipe)
    plan = spec.fold.model_copy(update=fold_fields).plan()
    deepest = plan_costs(spec.model, plan, 32)[-1]
    assert deepest.params_unrolled == pytest.approx(unshared, rel=1e-3)
    assert 100 * (1 - deepest.params_stored / deepest.params_unrolled) == pytest.approx(saved, abs=0.05)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("private", [Private(), Private(norms=True, lora_rank=4, film=True)], ids=str)
def test_counts_are_those_of_the_real_models(name: str, private: Private) -> None:
    model = fold(tiny_model(name), FoldPlan(3, (3, 5), order="cycle", private=private))
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}.values()
    for cost in costs_of(model):
        stock = unroll(model, cost.depth)
        assert cost.params_unrolled == sum(p.numel() for p in stock.parameters())
        assert cost.params_stored == sum(p.numel() for p in model.parameters())
        assert cost.bytes_stored == sum(t.numel() * t.element_size() for t in tensors)
        own = sum(p.numel() for key, p in model.named_parameters() if ".private." in key)
        assert cost.params_private == (own if cost.depth == 5 else 0)


def test_macs_of_a_block_by_hand() -> None:
    """Two more wav2vec 2.0 blocks cost what their six matrices and two attention products cost."""
    model = fold(tiny_model("wav2vec2"), FoldPlan(3, (3, 5)))
    shallow, deep = (cost.macs_per_audio_second for cost in costs_of(model))
    frames, width, inner = 500, 32, 64
    assert model._get_feat_extract_output_lengths(torch.tensor(160_000)) == frames
    block = frames * (4 * width * width + 2 * width * inner) + 2 * frames * frames * width
    assert deep - shallow == pytest.approx(2 * block / 10, rel=1e-6)
