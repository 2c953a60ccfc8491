"""Folded equals unrolled, bit for bit, in every family."""

import pytest
import torch

from foldray import FoldPlan, fold, unroll
from foldray.errors import UserError
from foldray.models import FixedBatchNorm, set_depths, stack_of
from tests.tiny import CONFIGS, frames_for, inputs_for, noise, tiny_model

PLANS = {
    "in_place": FoldPlan(3, (3, 4, 6)),
    "cycle": FoldPlan(3, (3, 5, 6), order="cycle"),
    "group": FoldPlan(4, (4, 6, 8), order="group", groups=(2, 2)),
    "keep": FoldPlan(4, (4, 6, 9), keep_first=1, keep_last=1),
    "paths": FoldPlan(2, (2, 4), paths=((0, 1), (0, 1, 1, 0))),
}


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("plan", list(PLANS.values()), ids=list(PLANS))
def test_folded_equals_unrolled_at_every_depth(name: str, plan: FoldPlan) -> None:
    model = fold(tiny_model(name, plan.num_layers), plan)
    inputs = inputs_for(model, [noise(1.1), noise(0.7, seed=1)])
    with torch.no_grad():
        logits_PBTV = model(**inputs).logits.unflatten(0, (len(plan.depths), 2))
        for path, depth in enumerate(plan.depths):
            stock = unroll(model, depth)
            assert stock.config.to_dict()["architectures"] == model.config.to_dict()["architectures"]
            assert torch.equal(logits_PBTV[path], stock(**inputs).logits), f"depth {depth}"
            set_depths(model, [depth])
            assert torch.equal(logits_PBTV[path], model(**inputs).logits), f"depth {depth} alone"
            set_depths(model, plan.depths)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_unrolled_shares_nothing(name: str) -> None:
    plan = PLANS["in_place"]
    model = fold(tiny_model(name), plan)
    stock = unroll(model, 6)
    pointers = [p.data_ptr() for p in stock.parameters() if p.numel()]
    assert len(set(pointers)) == len(pointers)
    assert not set(pointers) & {p.data_ptr() for p in model.parameters() if p.numel()}
    assert not any(isinstance(module, FixedBatchNorm) for module in stock.modules())


@pytest.mark.parametrize("name", list(CONFIGS))
def test_folding_keeps_the_stock_keys(name: str) -> None:
    before = tiny_model(name).state_dict()
    after = fold(tiny_model(name), PLANS["in_place"]).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_gradients_are_the_sums_over_the_uses(name: str) -> None:
    plan = PLANS["in_place"]
    model = fold(tiny_model(name), plan)
    inputs = inputs_for(model, [noise(1.0), noise(0.8, seed=1)])
    stock = unroll(model, 6)
    set_depths(model, [6])
    for each in (model, stock):
        each(**inputs).logits.float().square().mean().backward()
    unrolled_layers = stock.get_submodule(_encoder_name(name)).layers
    for layer, block in enumerate(stack_of(model).physical_layers()):
        uses = [unrolled_layers[i] for i, physical in enumerate(plan.path(6)) if physical == layer]
        for key, parameter in block.named_parameters():
            if parameter.grad is None:
                continue
            summed = sum(use.get_parameter(key).grad for use in uses)
            torch.testing.assert_close(parameter.grad, summed, rtol=1e-4, atol=1e-7)


def _encoder_name(name: str) -> str:
    from foldray.models import FAMILIES

    return FAMILIES[CONFIGS[name][0]].encoder


@pytest.mark.parametrize("name", list(CONFIGS))
def test_frames_are_those_that_the_last_sample_reaches(name: str) -> None:
    """The promised count is the model's own: its mask's, or all frames where an utterance is alone."""
    model = tiny_model(name)
    for seconds in (0.5, 0.73, 1.111):
        alone = [noise(seconds)]
        inputs = inputs_for(model, alone)
        with torch.no_grad():
            frames = model(**inputs).logits.shape[1]
        mask = inputs.get("attention_mask")
        if name == "parakeet":
            assert mask is not None
            frames = int(model.encoder._get_output_attention_mask(mask, target_length=frames).sum())
        assert frames_for(model, alone) == [frames]


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("wav2vec2", "hubert")])
def test_padding_does_not_change_valid_frames_in_train_mode(name: str) -> None:
    """Not for GroupNorm front ends, whose statistics run over the padding by nature."""
    plan = PLANS["in_place"]
    model = fold(tiny_model(name), plan)
    _without_dropout(model)
    model.train()
    short = noise(0.8)
    alone = inputs_for(model, [short])
    padded = {key: value[:1] for key, value in inputs_for(model, [short, noise(2.4, seed=1)]).items()}
    frames = frames_for(model, [short])[0]
    with torch.no_grad():
        valid_alone = model(**alone).logits[:, :frames]
        valid_padded = model(**padded).logits[:, :frames]
    torch.testing.assert_close(valid_alone, valid_padded, rtol=0, atol=2e-5)


def _without_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = getattr(model.config, "encoder_config", model.config)
    config.mask_time_prob = config.mask_feature_prob = 0.0
    for module in model.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_positions"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def test_a_folded_model_prints_its_stored_layers_once() -> None:
    text = repr(fold(tiny_model("wav2vec2"), PLANS["in_place"]))
    assert text.count("EncoderLayer(") == 3


def test_a_class_without_a_family_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"Linear.*can't be folded"):
        fold(torch.nn.Linear(2, 2), PLANS["in_place"])  # type: ignore[arg-type]


def test_a_plan_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="folds 4 layers, the model has 3"):
        fold(tiny_model("wav2vec2"), FoldPlan(4, (4, 8)))
