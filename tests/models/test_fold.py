"""The contract that every family of stock models meets when it is folded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from foldray import FoldPlan, fold, load_model, unroll
from foldray.errors import UserError
from foldray.folding.batchnorm import FixedBatchNorm
from foldray.folding.loss import StepCounts, joint_attention_loss, joint_loss
from foldray.folding.plan import Private
from foldray.models.families import FAMILIES, family_of, transformers_class
from foldray.models.fold import ctc_logits, set_depths, stack_of
from foldray.models.save_load import save_model
from tests.support.tiny import (
    CONFIGS,
    crossed,
    families,
    folded,
    frames_for,
    inputs_for,
    noise,
    run,
    tiny_model,
    without_dropout,
)

PRIVATE = Private(norms=True, lora_rank=4, film=True)
PLANS = {
    "in_place": FoldPlan(3, (3, 4, 6)),
    "cycle": FoldPlan(3, (3, 5, 6), order="cycle"),
    "group": FoldPlan(4, (4, 6, 8), order="group", groups=(2, 2)),
    "keep": FoldPlan(4, (4, 6, 9), keep_first=1, keep_last=1),
    "paths": FoldPlan(2, (2, 4), paths=((0, 1), (0, 1, 1, 0))),
    "private": FoldPlan(3, (3, 4, 7), order="cycle", private=PRIVATE),
}
READS_PADDING = {
    "wav2vec2": "GroupNorm over time",
    "hubert": "GroupNorm over time",
    "wavlm": "GroupNorm over time",
    "unispeech-sat": "GroupNorm over time",
    "sew": "GroupNorm over time",
    "unispeech": "GroupNorm over time",
    "speech-to-text": "convolutions without masks, one after the other",
    "moonshine": "GroupNorm over time",
    "data2vec-audio": "positional convolutions one after the other, masked before the first only",
    "wav2vec2-conformer": "a convolution without a mask in every block",
    "wav2vec2-conformer-rotary": "a convolution without a mask in every block",
}
"""Stock models whose valid frames change with padding by nature, and what in them does it."""


def two_utterances(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return inputs_for(model, [noise(1.1), noise(0.7, seed=1)])


def test_the_contract_runs_over_every_family() -> None:
    assert {family for family, _ in CONFIGS.values()} == set(FAMILIES)
    assert len(FAMILIES) >= 18
    assert len(CONFIGS) >= 25


@pytest.mark.main
@pytest.mark.parametrize(("name", "plan"), crossed(PLANS, "private"))
def test_folded_equals_unrolled_at_every_depth(name: str, plan: FoldPlan) -> None:
    """Also at depths that were not trained, and with padding; no difference at all in float32."""
    model = folded(name, plan)
    inputs = two_utterances(model)
    depths = plan.depths if plan.paths else (*plan.depths, plan.depths[-1] + 2)
    set_depths(model, depths)
    with torch.no_grad():
        logits_PBTV = run(model, inputs).unflatten(0, (len(depths), 2))
        for path, depth in enumerate(depths):
            stock = unroll(model, depth)
            assert torch.equal(logits_PBTV[path], run(stock, inputs)), f"depth {depth}"
            set_depths(model, [depth])
            assert torch.equal(logits_PBTV[path], run(model, inputs)), f"depth {depth} alone"
            set_depths(model, depths)


@pytest.mark.parametrize(
    ("name", "plan"), crossed({"shared": PLANS["in_place"], "private": PLANS["private"]}, "private")
)
def test_unrolled_is_stock_and_shares_nothing(name: str, plan: FoldPlan) -> None:
    model = folded(name, plan)
    stock = unroll(model, plan.depths[-1])
    fresh = type(stock)(stock.config)
    assert list(stock.state_dict()) == list(fresh.state_dict())
    assert [type(module).__name__ for module in stock.modules()] == [
        type(module).__name__ for module in fresh.modules()
    ]
    own = {p.data_ptr() for p in stock.parameters() if p.numel()}
    assert len(own) == len([p for p in stock.parameters() if p.numel()])
    assert not own & {p.data_ptr() for p in model.parameters() if p.numel()}


@pytest.mark.parametrize(
    ("name", "plan"), crossed({"shared": PLANS["in_place"], "private": PLANS["private"]}, "private")
)
def test_folding_keeps_the_stock_keys_and_each_tensor_once(name: str, plan: FoldPlan) -> None:
    stock = tiny_model(name)
    before = stock.state_dict()
    shared = len(before) - len({t.data_ptr() for t in before.values()})  # tied embeddings of a decoder
    after = fold(tiny_model(name), plan).state_dict()
    kept = {key: tensor for key, tensor in after.items() if ".private." not in key}
    assert list(before) == list(kept)
    assert all(torch.equal(before[key], kept[key]) for key in before)
    assert bool(len(after) - len(kept)) == bool(plan.private)
    assert len({t.data_ptr() for t in after.values()}) == len(after) - shared


@pytest.mark.main
@pytest.mark.parametrize(("name", "plan"), crossed({name: PLANS[name] for name in ("in_place", "cycle")}, "cycle"))
def test_gradients_are_the_sums_over_the_uses(name: str, plan: FoldPlan) -> None:
    """Of all paths at once, so that prefixes that paths share count for each of them; in float64."""
    model = fold(tiny_model(name).double(), plan)
    inputs = _double(two_utterances(model))
    weights = torch.randn(run(model, inputs).shape, generator=torch.Generator().manual_seed(2)).double()
    copies = {depth: unroll(model, depth) for depth in plan.depths}
    (run(model, inputs) * weights).sum().backward()
    for number, stock in enumerate(copies.values()):
        (run(stock, inputs) * weights.unflatten(0, (len(copies), 2))[number]).sum().backward()
    encoder = family_of(model).encoder
    for layer, block in enumerate(stack_of(model).physical_layers()):
        uses = [
            stock.get_submodule(f"{encoder}.layers.{position}")
            for depth, stock in copies.items()
            for position, physical in enumerate(plan.path(depth))
            if physical == layer
        ]
        for key, parameter in block.named_parameters():
            summed = sum(p.grad for use in uses if (p := dict(use.named_parameters()).get(key)) is not None)
            torch.testing.assert_close(parameter.grad, summed, rtol=1e-9, atol=1e-12, msg=key)
    outside = [key for key, _ in model.named_parameters() if not key.startswith(f"{encoder}.layers.")]
    for key in outside:
        summed = [g for stock in copies.values() if (g := stock.get_parameter(key).grad) is not None]
        gradient = model.get_parameter(key).grad
        assert (gradient is None) == (not summed)
        if gradient is not None:
            torch.testing.assert_close(gradient, sum(summed), rtol=1e-9, atol=1e-12, msg=key)


def _double(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}


@pytest.mark.parametrize("name", families())
def test_activation_checkpointing_changes_nothing(name: str) -> None:
    """Blocks run again during backward run as the use they were."""
    gradients = []
    for checkpointed in (False, True):
        model = folded(name, PLANS["private"])
        without_dropout(model)
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        run(model, two_utterances(model)).square().mean().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert list(gradients[0]) == list(gradients[1])
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


@pytest.mark.parametrize("name", families())
def test_no_trained_parameter_is_left_without_a_gradient(name: str) -> None:
    """DistributedDataParallel refuses parameters that a step does not reach."""
    model = folded(name, PLANS["private"]).train()
    run(model, two_utterances(model)).square().mean().backward()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("depths", [[], [3, 3]])
def test_depths_are_chosen_each_once(depths: list[int]) -> None:
    model = folded("wav2vec2-stable", FoldPlan(2, (2, 3)))
    with pytest.raises(UserError, match=r"^depths: choose at least one depth, each once"):
        set_depths(model, depths)


@pytest.mark.main
@pytest.mark.parametrize("name", families())
def test_saved_and_loaded_is_the_same_and_its_seed_opens_in_stock_transformers(name: str, tmp_path: Path) -> None:
    plan = PLANS["private"]
    model = folded(name, plan)
    inputs = two_utterances(model)
    save_model(model, tmp_path)
    family = family_of(model)
    stock, report = transformers_class(family.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    again = load_model(str(tmp_path))
    with torch.no_grad():
        logits_PBTV = run(model, inputs)
        assert torch.equal(logits_PBTV, run(again, inputs))
        assert torch.equal(logits_PBTV[:2], run(stock.eval(), inputs))
        assert torch.equal(logits_PBTV[-2:], run(load_model(str(tmp_path), depth=7), inputs))


@pytest.mark.parametrize("name", families(n for n, (family, _) in CONFIGS.items() if FAMILIES[family].attention))
def test_generation_runs_at_each_depth(name: str) -> None:
    model = folded(name, PLANS["in_place"])
    inputs = {key: value for key, value in two_utterances(model).items() if key != "decoder_input_ids"}
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "num_beams": 1}
    for depth in PLANS["in_place"].depths:
        set_depths(model, [depth])
        written = model.generate(**inputs, **options)
        assert torch.equal(written, unroll(model, depth).generate(**inputs, **options))
    set_depths(model, PLANS["in_place"].depths)
    with pytest.raises((UserError, ValueError), match="set_depths"):
        model.generate(**inputs, **options)


# --- Shapes and padding ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", families(n for n, (family, _) in CONFIGS.items() if not FAMILIES[family].attention))
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


def losses_alone_and_padded(name: str) -> list[tuple[float, float, dict[str, torch.Tensor]]]:
    """Joint loss, KL and gradients of one utterance by itself and padded to three times its length, in train mode.

    Its features are the same: the transform itself rounds by batch shape.
    """
    results = []
    short = noise(0.8)
    for is_padded in (False, True):
        model = folded(name, PLANS["private"]).double().train()
        without_dropout(model)
        inputs = {key: value[:1] for key, value in _double(inputs_for(model, [short, noise(2.4, seed=1)])).items()}
        if not is_padded and not family_of(model).fixed_length:
            family = family_of(model)
            length = int(inputs[family.mask].sum()) if family.mask in inputs else len(short)
            time = dict.fromkeys((family.inputs, family.mask), 1) | (
                {family.inputs: 2} if name == "omniasr-ctc" else {}
            )
            inputs |= {key: inputs[key].narrow(axis, 0, length) for key, axis in time.items() if key in inputs}
        output = model(**inputs)
        losses = []
        if family_of(model).ctc:
            valid = frames_for(model, [short])[0]
            ctc = (torch.tensor([valid]), torch.tensor([[3, 4, 3]]), torch.tensor([3]), StepCounts(3, valid))
            losses.append(joint_loss(ctc_logits(output).unflatten(0, (3, -1)), *ctc, alpha=0.5, beta=0.3))
        if family_of(model).attention:
            tokens = (torch.tensor([[3, 4, 5, 9]]), torch.tensor([4]), 4)
            losses.append(joint_attention_loss(output.logits.unflatten(0, (3, -1)), *tokens, alpha=0.5, beta=0.3))
        total, kl = (sum(getattr(loss, part).sum() for loss in losses) for part in ("total", "kl_P"))
        total.backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((float(total.detach()), float(kl), gradients))
    return results


@pytest.mark.parametrize("name", families(n for n in CONFIGS if n not in READS_PADDING))
def test_padding_changes_neither_loss_nor_gradients_in_train_mode(name: str) -> None:
    (loss, kl, gradients), (padded_loss, padded_kl, padded_gradients) = losses_alone_and_padded(name)
    assert padded_loss == pytest.approx(loss, abs=1e-6), f"{name}: if stock models read padding, see READS_PADDING"
    assert padded_kl == pytest.approx(kl, abs=1e-6)
    assert list(gradients) == list(padded_gradients)
    for key in gradients:
        torch.testing.assert_close(padded_gradients[key], gradients[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", families(READS_PADDING))
def test_where_padding_matters_by_nature_the_loader_sees_to_the_rest(name: str) -> None:
    """These stock models read the padding; what they are given of an utterance does not depend on its batch.

    Where a GroupNorm was trained without masks none is given. Batches of like durations keep the
    padding small: tests/test_epoch.py.
    """
    (loss, *_), (padded_loss, *_) = losses_alone_and_padded(name)
    assert abs(loss - padded_loss) > 1e-5, "the library has mended it: take the name off the list"
    model = tiny_model(name)
    alone, padded = (inputs_for(model, [noise(0.8), *more]) for more in ([], [noise(2.4, seed=1)]))
    audio, filled = (each[family_of(model).inputs][0] for each in (alone, padded))
    assert torch.equal(filled[: len(audio)], audio)
    assert not filled[len(audio) :].any()
    trained_without = getattr(model.config, "feat_extract_norm", "layer") == "group"
    assert ("attention_mask" in padded) == (not trained_without)


# --- Refusals --------------------------------------------------------------------------------------


def test_a_folded_model_prints_its_stored_layers_once() -> None:
    text = repr(fold(tiny_model("wav2vec2"), PLANS["in_place"]))
    assert text.count("EncoderLayer(") == 3


def test_a_class_without_a_family_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"Linear.*can't be folded: foldray has no family for this class"):
        fold(torch.nn.Linear(2, 2), PLANS["in_place"])  # type: ignore[arg-type]


def test_a_family_that_cannot_fold_is_refused_with_the_reason() -> None:
    import transformers

    model = transformers.SEWDForCTC(transformers.SEWDConfig(num_hidden_layers=1, hidden_size=48, intermediate_size=32))
    with pytest.raises(UserError, match=r"SEWDForCTC.*can't be folded: its blocks take query states"):
        fold(model, PLANS["in_place"])
    model = tiny_model("wav2vec2-bert")
    model.config.add_adapter = True
    with pytest.raises(UserError, match="add_adapter"):
        fold(model, PLANS["in_place"])


def test_plans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="folds 4 layers, the model has 3"):
        fold(tiny_model("wav2vec2"), FoldPlan(4, (4, 8)))
    with pytest.raises(ValueError, match="begin every path with 0"):
        fold(tiny_model("wavlm", 2), FoldPlan(2, (2, 3), paths=((0, 1), (1, 0, 1))))
    with pytest.raises(ValueError, match=r"no projection 'query'; it has .*q_proj"):
        fold(tiny_model("wav2vec2"), FoldPlan(3, (3, 6), private=Private(lora_rank=2, lora_on=("query",))))
    with pytest.raises(UserError, match=r"depth 2 is shallower than the seed, 3 \(trained: 3, 4, 6\)"):
        set_depths(fold(tiny_model("wav2vec2"), PLANS["in_place"]), [2])
    assert FixedBatchNorm(3).train().training is False
