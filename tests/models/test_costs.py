"""Costs from configurations alone: the paper's savings, and counts against the real model."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from foldray import FoldPlan, fold, set_depths, unroll
from foldray.cli.main import main
from foldray.config.model import ModelSpec, PlannedModel
from foldray.folding.plan import Private
from foldray.models.costs import JointCost, costs_of, joint_cost, plan_costs
from foldray.models.count_model import count_bytes, count_kept_bytes
from tests.support.tiny import CONFIGS, families, tiny_model


@pytest.mark.parametrize(
    ("recipe", "unshared", "saved"),
    [
        ("conformer-swbd-6", 44.53e6, 35.6),
        ("wav2vec2-base-8", 94.39e6, 30.0),
        ("hubert-large-16", 315.4e6, 31.9),
        ("hubert-large-12", 315.4e6, 47.9),
    ],
)
def test_savings_of_the_paper(recipe: str, unshared: float, saved: float, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", recipe, "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["params_unrolled"] == pytest.approx(unshared, rel=1e-2 if recipe == "conformer-swbd-6" else 1e-3)
    assert plan["saved_percent"] == pytest.approx(saved, abs=0.3)
    assert plan["saved_percent"] == pytest.approx(100 * (1 - plan["params_stored"] / plan["params_unrolled"]), abs=0.01)
    assert [depth["depth"] for depth in plan["depths"]][-1] == len(plan["depths"][-1]["path"])


def test_bytes_at_each_precision_by_hand() -> None:
    """A linear layer of 3 x 5 with bias, and a norm of 3: 15 weights in a matrix, 9 outside."""
    model = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    assert count_bytes(model) == count_bytes(model, "float32") == 24 * 4
    assert count_bytes(model, "bfloat16") == 24 * 2
    assert count_bytes(model, "int8") == 15 + 3 * 4 + 9 * 4


@pytest.mark.main
def test_macs_against_another_counter() -> None:
    """torch.profiler counts the matrix products that ran by formulas of its own; convolutions are counted by hand."""
    model = fold(tiny_model("wav2vec2"), FoldPlan(3, (3, 5)))
    model.config._attn_implementation = "eager"  # attention written out, so that the profiler sees it
    front_end = 31_999 * 10 * 16 + 3_999 * 8 * 16 * 16 + 500 * 4 * 16 * 16
    positions = 501 * 16 * 16 * 32  # kernel 16, two groups of 16 channels
    for cost in costs_of(model):
        set_depths(model, [cost.depth])
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as counted, torch.no_grad():
            model(torch.zeros(1, 160_000))
        products = sum(e.flops for e in counted.key_averages() if e.key in ("aten::addmm", "aten::mm", "aten::bmm"))
        assert cost.macs_per_audio_second * 10 == products / 2 + front_end + positions


@pytest.mark.main
@pytest.mark.parametrize(
    ("order", "depths", "more"),
    # Prefixes that the deepest path lacks: 0 1 2 beside 0 1 1 2 2; 0 1 and 0 1 2 beside 0 0 1 1 2 2; none in a cycle.
    [("in_place", (3, 5), 1), ("in_place", (3, 6), 2), ("cycle", (3, 5, 6), 0)],
)
def test_macs_of_a_joint_step_by_hand(order: Any, depths: tuple[int, ...], more: int) -> None:
    plan = FoldPlan(3, depths, order=order)
    spec = ModelSpec(family="parakeet", config=CONFIGS["parakeet"][1])
    costs = plan_costs(PlannedModel(spec, plan), 9)
    per_block = (costs[-1].macs_per_audio_second - costs[0].macs_per_audio_second) / (depths[-1] - 3)
    head = 25 * 32 * 9  # frames a second, width, units
    wanted = costs[-1].macs_per_audio_second + more * per_block + (len(depths) - 1) * head
    assert joint_cost(PlannedModel(spec, plan), 9).macs_per_audio_second == pytest.approx(wanted, rel=1e-9)


def test_a_step_that_draws_depths_costs_the_mean_of_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is as large as the dearest of them."""
    spec = ModelSpec(family="parakeet", config=CONFIGS["parakeet"][1])

    def cost(*depths: int, sampled: int | None = None) -> JointCost:
        return joint_cost(PlannedModel(spec, FoldPlan(3, depths)), 9, sampled)

    draws = [cost(3, *drawn, 8) for drawn in ((4, 5), (4, 7), (5, 7))]
    two, none = (cost(3, 4, 5, 7, 8, sampled=sampled) for sampled in (2, 0))
    assert two.macs_per_audio_second == pytest.approx(sum(each.macs_per_audio_second for each in draws) / 3, rel=1e-9)
    assert two.kept_bytes_per_audio_second == max(each.kept_bytes_per_audio_second for each in draws)
    assert len({each.macs_per_audio_second for each in draws}) > 1
    assert none == cost(3, 8)
    assert cost(3, 4, 5, 7, 8, sampled=3) == cost(3, 4, 5, 7, 8)
    # Where there are too many it looks at some, here at two of the three.
    monkeypatch.setattr("foldray.models.costs.MOST_DRAWS", 2)
    pairs = [(one.macs_per_audio_second + other.macs_per_audio_second) / 2 for one in draws for other in draws]
    some = cost(3, 4, 5, 7, 8, sampled=2).macs_per_audio_second
    assert any(some == pytest.approx(mean, rel=1e-9) for mean in pairs)


def test_what_is_kept_for_backward_by_hand() -> None:
    """Linear, ReLU, linear without biases: the input, and the ReLU's output once, though two keep it."""
    model = nn.Sequential(nn.Linear(5, 3, bias=False), nn.ReLU(), nn.Linear(3, 7, bias=False))
    inputs = {"input": torch.zeros(4, 5)}
    assert count_kept_bytes(model, inputs) == 4 * (4 * 5 + 4 * 3)
    assert count_kept_bytes(model.to("meta"), {"input": inputs["input"].to("meta")}) == 4 * (4 * 5 + 4 * 3)


def test_what_is_kept_grows_with_the_depths() -> None:
    """A fold 3 -> 6 in place runs eight blocks in a step: between 3 + 6 and 6 of a model by itself."""
    spec = ModelSpec(family="parakeet", config=CONFIGS["parakeet"][1])
    kept = {
        plan.depths: joint_cost(PlannedModel(spec, plan), 9).kept_bytes_per_audio_second
        for plan in (FoldPlan(3, (3,)), FoldPlan(6, (6,)), FoldPlan(3, (3, 6)))
    }
    assert kept[6,] < kept[3, 6] < kept[3,] + kept[6,]


@pytest.mark.main
@pytest.mark.parametrize("name", families())
def test_counts_are_those_of_the_real_models(name: str) -> None:
    private = Private(norms=True, lora_rank=4, film=True)
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
