"""The contract of a folded decoder: each depth of the encoder has a path of its own in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import PreTrainedModel

from foldray import FoldPlan, fold, fold_checkpoint, load_model, set_depths, unroll
from foldray.errors import UserError
from foldray.folding.plan import Private
from foldray.models.count_model import count_bytes, count_parameters
from foldray.models.families import family_of, transformers_class
from foldray.models.fold import decoder_stack_of, stack_of
from foldray.models.from_checkpoint import initial_distances, load_folded
from foldray.models.save_load import save_model
from tests.support.paths import AN4, PROJECT
from tests.support.tiny import (
    DECODERS,
    TOKENIZER,
    families,
    folded,
    inputs_for,
    noise,
    run,
    tiny_model,
    tiny_spec,
    without_dropout,
)

WHISPER = PROJECT.parent / "shared" / "models" / "whisper-tiny-en"
PRIVATE = Private(norms=True, lora_rank=4, film=True)
ENCODER = FoldPlan(3, (3, 4, 6))
PLANS = {
    "in_place": (ENCODER, FoldPlan(2, (2, 3, 4))),
    "cycle": (FoldPlan(3, (3, 5, 6), order="cycle"), FoldPlan(2, (2, 3, 5), order="cycle")),
    "group": (ENCODER, FoldPlan(4, (4, 5, 8), order="group", groups=(2, 2))),
    "paths": (ENCODER, FoldPlan(2, (2, 4, 5), paths=((0, 1), (1, 0, 1, 0), (0, 0, 1, 1, 1)))),
    "private": (FoldPlan(3, (3, 4, 7), private=PRIVATE), FoldPlan(2, (2, 3, 5), order="cycle", private=PRIVATE)),
    "one_for_all": (ENCODER, FoldPlan(2, (2,))),
    "one_depth": (FoldPlan(4, (4,)), FoldPlan(4, (4,))),
}
plans = pytest.mark.parametrize(("plan", "decoder"), list(PLANS.values()), ids=list(PLANS))
names = pytest.mark.parametrize("name", families(DECODERS))


def two_utterances(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Audio of two lengths, and a padded token."""
    inputs = inputs_for(model, [noise(1.1), noise(0.7, seed=1)])
    return {**inputs, "decoder_attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}


def written(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    """Eight tokens for each utterance, whatever the model thinks of them."""
    audio = {key: value for key, value in inputs.items() if not key.startswith("decoder_")}
    tokens: torch.Tensor = model.generate(**audio, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options)
    return tokens


@names
@plans
def test_folded_equals_unrolled_at_every_depth(name: str, plan: FoldPlan, decoder: FoldPlan) -> None:
    """All depths at once, one alone, and in another order; no difference at all in float32."""
    model = folded(name, plan, decoder)
    inputs = two_utterances(model)
    with torch.no_grad():
        logits_PBUV = run(model, inputs).unflatten(0, (len(plan.depths), 2))
        for path, depth in enumerate(plan.depths):
            assert torch.equal(logits_PBUV[path], run(unroll(model, depth), inputs)), f"depth {depth}"
            set_depths(model, [depth])
            assert torch.equal(logits_PBUV[path], run(model, inputs)), f"depth {depth} alone"
        set_depths(model, plan.depths[::-1])
        assert torch.equal(logits_PBUV.flip(0).flatten(0, 1), run(model, inputs))
    assert len({tuple(each.flatten().tolist()) for each in logits_PBUV}) == len(plan.depths)


@names
@plans
@pytest.mark.parametrize("beams", [1, 3], ids=["greedy", "beam"])
def test_generation_with_a_cache_writes_what_the_unrolled_model_writes(
    name: str, plan: FoldPlan, decoder: FoldPlan, beams: int
) -> None:
    """A block that runs twice has two caches: with one for both the tokens differ after the first."""
    model = folded(name, plan, decoder)
    inputs = two_utterances(model)
    for depth in (*plan.depths, plan.depths[0]):
        set_depths(model, depth)
        tokens = written(model, inputs, num_beams=beams)
        assert tokens.shape[1] >= 8
        assert torch.equal(tokens, written(unroll(model, depth), inputs, num_beams=beams)), f"depth {depth}"
        assert torch.equal(tokens, written(model, inputs, num_beams=beams, use_cache=False)), f"depth {depth} anew"


@names
def test_the_cache_holds_each_application_of_a_block(name: str) -> None:
    """The logits of the last token, step by step, are those of all tokens at once."""
    model = folded(name, *PLANS["private"])
    inputs = two_utterances(model)
    del inputs["decoder_attention_mask"]
    tokens_BU = inputs.pop("decoder_input_ids")
    set_depths(model, 7)
    with torch.no_grad():
        whole_BUV = run(model, {**inputs, "decoder_input_ids": tokens_BU})
        cache = None
        for position in range(tokens_BU.shape[1]):
            step = model(**inputs, decoder_input_ids=tokens_BU[:, position : position + 1], cache=cache, use_cache=True)
            cache = step.cache
            torch.testing.assert_close(step.logits[:, 0], whole_BUV[:, position], rtol=0, atol=1e-5)
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        assert [layer.get_seq_length() > 0 for layer in part.layers] == [True] * 5


@names
@pytest.mark.parametrize("case", ["in_place", "cycle"])
def test_gradients_are_the_sums_over_the_uses(name: str, case: str) -> None:
    """In both stacks, of all paths at once; in float64."""
    plan, decoder = PLANS[case]
    model = fold(tiny_model(name, 3, 2).double(), plan, decoder)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in two_utterances(model).items()}
    weights = torch.randn(run(model, inputs).shape, generator=torch.Generator().manual_seed(2)).double()
    copies = [unroll(model, depth) for depth in plan.depths]
    (run(model, inputs) * weights).sum().backward()
    for stock, own in zip(copies, weights.unflatten(0, (len(copies), 2)), strict=True):
        (run(stock, inputs) * own).sum().backward()
    family = family_of(model)
    for module, stack, its in (
        (family.encoder, stack_of(model), plan),
        (family.decoder, decoder_stack_of(model), decoder),
    ):
        for layer, block in enumerate(stack.physical_layers()):
            uses = [
                stock.get_submodule(f"{module}.layers.{position}")
                for stock, path in zip(copies, its.all_paths(), strict=True)
                for position, physical in enumerate(path)
                if physical == layer
            ]
            for key, parameter in block.named_parameters():
                summed = torch.stack([use.get_parameter(key).grad for use in uses]).sum(0)
                torch.testing.assert_close(parameter.grad, summed, rtol=1e-9, atol=1e-12, msg=key)


@names
def test_every_parameter_gets_a_gradient_and_checkpointing_changes_none(name: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = folded(name, *PLANS["private"])
        without_dropout(model)
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        run(model, two_utterances(model)).square().mean().backward()
        assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])


@names
@pytest.mark.parametrize("case", ["in_place", "private"])
def test_unrolled_is_stock_and_its_embedding_is_stored_once(name: str, case: str, tmp_path: Path) -> None:
    plan, decoder = PLANS[case]
    model = folded(name, plan, decoder)
    stock = unroll(model, plan.depths[-1])
    fresh = type(stock)(stock.config)
    assert list(stock.state_dict()) == list(fresh.state_dict())
    assert [type(each).__name__ for each in stock.modules()] == [type(each).__name__ for each in fresh.modules()]
    caches = [[getattr(each, "layer_idx", None) for each in one.modules()] for one in (stock, fresh)]
    assert caches[0] == caches[1]
    assert stock.get_output_embeddings().weight is stock.model.decoder.embed_tokens.weight
    assert (count_parameters(stock), count_bytes(stock)) == (count_parameters(fresh), count_bytes(fresh))
    assert not {p.data_ptr() for p in stock.parameters()} & {p.data_ptr() for p in model.parameters()}
    stock.save_pretrained(tmp_path)
    again = type(stock).from_pretrained(tmp_path).eval()
    inputs = two_utterances(model)
    with torch.no_grad():
        assert torch.equal(run(again, inputs), run(stock, inputs))


@pytest.mark.main
@names
@pytest.mark.parametrize("case", ["in_place", "private", "one_for_all"])
def test_saved_and_loaded_is_the_same_and_its_seed_opens_in_stock_transformers(
    name: str, case: str, tmp_path: Path
) -> None:
    plan, decoder = PLANS[case]
    model = folded(name, plan, decoder)
    inputs = two_utterances(model)
    save_model(model, tmp_path)
    opened = transformers_class(family_of(model).model).from_pretrained(tmp_path, output_loading_info=True)
    stock, report = opened
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    again = load_model(tmp_path)
    assert (stack_of(again).plan, decoder_stack_of(again).plan) == (plan, decoder)  # type: ignore[union-attr]
    with torch.no_grad():
        logits_PBUV = run(model, inputs)
        assert torch.equal(logits_PBUV, run(again, inputs))
        assert torch.equal(logits_PBUV[:2], run(stock.eval(), inputs))
        assert torch.equal(logits_PBUV[-2:], run(load_model(tmp_path, depth=plan.depths[-1]), inputs))


def test_a_plan_file_has_a_decoder_only_where_it_is_folded(tmp_path: Path) -> None:
    save_model(folded("whisper", ENCODER), tmp_path / "stock")
    assert "decoder" not in json.loads((tmp_path / "stock" / "fold.json").read_text())
    assert decoder_stack_of(load_model(tmp_path / "stock")) is None
    save_model(folded("whisper", *PLANS["in_place"]), tmp_path / "both")
    file = tmp_path / "both" / "fold.json"
    values = json.loads(file.read_text())
    for damage, message in (
        (3, r"decoder: must be a plan"),
        ({"depth": 3}, r"unknown field depth"),
        ({"num_layers": 2, "depths": [2, 3]}, r"decoder\.depths: \[2, 3\] must have one depth for each"),
    ):
        file.write_text(json.dumps({**values, "decoder": damage}))
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "both")


# --- Checkpoints -----------------------------------------------------------------------------------


def deeper(name: str, folder: Path) -> PreTrainedModel:
    """A stock checkpoint of 6 + 4 layers that all differ."""
    model = tiny_model(name, 6, 4)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    model.save_pretrained(folder)
    return model


@names
def test_a_deeper_checkpoint_gives_the_layers_of_both_stacks(name: str, tmp_path: Path) -> None:
    stock = deeper(name, tmp_path)
    model = fold_checkpoint(tmp_path, FoldPlan(3, (3, 6)), "stepwise", FoldPlan(2, (2, 4)))
    family = family_of(model)
    assert getattr(model.config, family.depth_field) == 3
    assert getattr(model.config, family.decoder_depth_field) == 2
    for module, taken in ((family.encoder, (0, 2, 5)), (family.decoder, (0, 3))):
        for own, source in enumerate(taken):
            ours, theirs = (
                model.get_submodule(f"{module}.layers.{own}"),
                stock.get_submodule(f"{module}.layers.{source}"),
            )
            assert all(torch.equal(p, theirs.get_parameter(key)) for key, p in ours.named_parameters())
    set_depths(model, 6)
    inputs = two_utterances(model)
    assert torch.equal(written(model, inputs), written(unroll(model, 6), inputs))
    first = fold_checkpoint(tmp_path, FoldPlan(3, (3, 6)), "first", FoldPlan(2, (2, 4)))
    ours, theirs = first.get_submodule(f"{family.decoder}.layers.1"), stock.get_submodule(f"{family.decoder}.layers.1")
    assert all(torch.equal(p, theirs.get_parameter(key)) for key, p in ours.named_parameters())


@names
@pytest.mark.parametrize("method", ["stepwise", "first", "average", "svd"])
def test_a_seed_of_all_layers_is_the_checkpoint(name: str, method: Any, tmp_path: Path) -> None:
    stock = deeper(name, tmp_path)
    lora = Private(lora_rank=2)
    model = fold_checkpoint(tmp_path, FoldPlan(6, (6, 9), private=lora), method, FoldPlan(4, (4, 6), private=lora))
    set_depths(model, 6)
    inputs = two_utterances(model)
    with torch.no_grad():
        assert torch.equal(run(model, inputs), run(stock.eval(), inputs))
    average = fold_checkpoint(tmp_path, FoldPlan(3, (3, 6)), "average", FoldPlan(2, (2, 4)))
    decoder: Any = family_of(model).decoder
    pair = [stock.get_submodule(f"{decoder}.layers.{i}").state_dict() for i in (2, 3)]
    for key, tensor in average.get_submodule(f"{decoder}.layers.1").state_dict().items():
        torch.testing.assert_close(tensor, (pair[0][key] + pair[1][key]) / 2, rtol=0, atol=1e-7)


@names
def test_chosen_layers_of_both_stacks(name: str, tmp_path: Path) -> None:
    stock = deeper(name, tmp_path)
    family = family_of(stock)
    plans = FoldPlan(3, (3, 4)), FoldPlan(2, (2, 4))
    model = fold_checkpoint(tmp_path, plans[0], decoder=plans[1], layers=[0, 2, 5], decoder_layers=[1, 3])
    for stack, chosen in ((family.encoder, [0, 2, 5]), (family.decoder or "", [1, 3])):
        module: Any = stock.get_submodule(stack)
        module.layers = torch.nn.ModuleList(module.layers[i] for i in chosen)
    family.set_layers(stock.config, 3, 2)
    stock.config.use_cache = False  # the caches of the layers left are numbered as in the whole model
    set_depths(model, 3)
    inputs = two_utterances(model)
    with torch.no_grad():
        assert torch.equal(run(model, inputs), run(stock.eval(), inputs))
    with pytest.raises(UserError, match=r"^model\.decoder_layers: \[1\] are fewer than num_layers = 2"):
        fold_checkpoint(tmp_path, plans[0], decoder=plans[1], decoder_layers=[1])
    with pytest.raises(UserError, match=r"^model\.decoder_layers: the decoder is not folded"):
        fold_checkpoint(tmp_path, plans[0], decoder_layers=[1])


def test_low_rank_parts_of_full_rank_make_up_for_the_average_in_the_decoder_too(tmp_path: Path) -> None:
    """Up to the last rank, the second use is the layer that it replaces."""
    stock = deeper("whisper", tmp_path)
    parts = Private(norms=True, lora_rank=31)
    with pytest.raises(UserError, match=r"^model\.seed_layers: svd stores the residual"):
        fold_checkpoint(tmp_path, FoldPlan(3, (3, 6), private=parts), "svd", FoldPlan(2, (2, 4)))
    model = fold_checkpoint(tmp_path, FoldPlan(3, (3, 6), private=parts), "svd", FoldPlan(2, (2, 4), private=parts))
    unrolled = unroll(model, 6)
    for position in (1, 3):
        ours, theirs = (each.model.decoder.layers[position].encoder_attn for each in (unrolled, stock))
        smallest = torch.linalg.svdvals(
            theirs.q_proj.weight - model.model.decoder.layers[position // 2].encoder_attn.q_proj.weight
        )[-1]
        missing = (ours.q_proj.weight - theirs.q_proj.weight).norm()
        torch.testing.assert_close(missing, smallest, rtol=0, atol=1e-5)
        norms = [each.model.decoder.layers[position].final_layer_norm.weight for each in (unrolled, stock)]
        assert torch.equal(*norms)


def test_the_residual_of_chosen_layers_is_theirs_in_the_decoder_too(tmp_path: Path) -> None:
    stock = deeper("whisper", tmp_path)
    parts = Private(norms=True, lora_rank=31)
    plans = FoldPlan(2, (2, 4), private=parts), FoldPlan(1, (1, 2), private=parts)
    model = fold_checkpoint(tmp_path, plans[0], "svd", plans[1], layers=[0, 2, 3, 5], decoder_layers=[0, 2])
    unrolled = unroll(model, 4)
    for stack, position, source in (("encoder", 1, 2), ("encoder", 3, 5), ("decoder", 1, 2)):
        ours, theirs = (
            each.get_submodule(f"model.{stack}.layers.{number}.final_layer_norm").weight
            for each, number in ((unrolled, position), (stock, source))
        )
        assert torch.equal(ours, theirs)


@names
def test_the_distance_is_the_encoders(name: str, tmp_path: Path) -> None:
    deeper(name, tmp_path)
    model, sources, _ = load_folded(
        tiny_spec(name, 4), str(tmp_path), FoldPlan(3, (3, 6)), TOKENIZER, 0, FoldPlan(2, (2, 4))
    )
    assert len(sources) == 6
    inputs = two_utterances(model)
    both = initial_distances(model, sources, inputs, torch.tensor([9, 5]))
    model, sources, _ = load_folded(tiny_spec(name, 4), str(tmp_path), FoldPlan(3, (3, 6)), TOKENIZER, 0)
    assert both == initial_distances(model, sources, inputs, torch.tensor([9, 5]))
    assert both[3] > 0.01


@pytest.mark.main
@pytest.mark.skipif(
    not (WHISPER.is_dir() and AN4.is_dir()), reason="Whisper or AN4 is not beside the project (../shared)"
)
@pytest.mark.parametrize("plan", [FoldPlan(4, (4,)), FoldPlan(2, (2, 4))], ids=["4", "2-4"])
def test_whisper_writes_what_the_unrolled_model_writes(plan: FoldPlan) -> None:
    model = fold_checkpoint(WHISPER, plan, decoder=plan)
    waveform, _ = soundfile.read(sorted(AN4.glob("audio/test/*.flac"))[0], dtype="float32")
    audio = {key: v for key, v in inputs_for(model, [torch.tensor(waveform)]).items() if key == "input_features"}
    for depth in plan.depths:
        set_depths(model, depth)
        options = {"max_new_tokens": 30, "min_new_tokens": 20, "do_sample": False, "num_beams": 1}
        tokens = model.generate(**audio, **options)
        assert tokens.numel() >= 20
        assert torch.equal(tokens, unroll(model, depth).generate(**audio, **options))


# --- Refusals --------------------------------------------------------------------------------------


def test_only_planned_depths_run_unless_one_decoder_path_serves_all() -> None:
    model = folded("whisper", *PLANS["in_place"])
    for run_it in (lambda: set_depths(model, 5), lambda: unroll(model, 5)):
        with pytest.raises(
            UserError, match=r"^depth: depth 5 is not planned; with its decoder this model runs at 3, 4, 6$"
        ):
            run_it()
    assert stack_of(model).run_depths == (3, 4, 6)
    model = folded("whisper", *PLANS["one_for_all"])
    inputs = two_utterances(model)
    with torch.no_grad():
        set_depths(model, [5, 3])
        assert torch.equal(run(model, inputs)[:2], run(unroll(model, 5), inputs))


def test_plans_that_do_not_fit_are_refused_before_anything_is_changed() -> None:
    def refused(message: str, decoder: FoldPlan, name: str = "whisper", layers: int | None = 2) -> None:
        model = tiny_model(name, 3, layers)
        with pytest.raises(ValueError, match=message):
            fold(model, ENCODER, decoder)
        fold(model, ENCODER)

    refused(
        r"^decoder\.depths: \[2, 4\] must have one depth for each of the encoder's \[3, 4, 6\]", FoldPlan(2, (2, 4))
    )
    refused(r"^decoder\.num_layers: the plan folds 3 layers, the model has 2$", FoldPlan(3, (3, 4, 6)))
    lora = Private(lora_rank=2, lora_on=("query",))
    refused(r"^decoder\.lora_on: a block has no projection 'query'", FoldPlan(2, (2, 3, 4), private=lora))
    refused(r"^decoder: conformer has no decoder that can be folded", FoldPlan(2, (2, 3, 4)), "conformer")
    refused(r"^decoder: wav2vec2 has no decoder that can be folded", FoldPlan(2, (2, 3, 4)), "wav2vec2", None)


def test_several_depths_are_not_generated_at_once_and_a_cache_of_fixed_size_is_refused() -> None:
    model = folded("whisper", *PLANS["in_place"])
    inputs = two_utterances(model)
    with pytest.raises(UserError, match=r"generation runs one depth; choose it with set_depths"):
        written(model, inputs)
    set_depths(model, 6)
    with pytest.raises(UserError, match=r"^cache_implementation: a folded decoder generates with a dynamic cache"):
        written(model, inputs, cache_implementation="static")


def test_layers_of_a_folded_decoder_are_never_dropped() -> None:
    stock = tiny_model("whisper", 3, 2)
    stock.config.decoder_layerdrop = stock.model.decoder.layerdrop = 0.5
    kept = fold(stock, *PLANS["in_place"])
    assert kept.config.decoder_layerdrop == kept.model.decoder.layerdrop == 0.0
