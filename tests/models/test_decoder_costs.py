"""What a folded decoder costs: sums over its plan against torch's own counter on the folded model."""

import json
import statistics
from itertools import combinations

import pytest
import torch

from foldray.cli.main import main
from foldray.config.model import PlannedModel
from foldray.errors import UserError
from foldray.folding.plan import FoldPlan, Private
from foldray.models.costs import MACS_SECONDS, bytes_at_precisions, costs_of, joint_cost, plan_costs
from foldray.models.count import _meta_inputs, fold_on_meta
from foldray.models.count_model import count_bytes, count_kept_bytes, count_macs, count_parameters, count_private
from foldray.models.fold import decoder_stack_of, set_depths, stack_of, unroll
from foldray.models.shape_counts import PRECISIONS
from tests.support.tiny import DECODERS, families, folded, tiny_spec

PRIVATE = Private(norms=True, lora_rank=4, film=True)
PLANS = {
    "in_place": (FoldPlan(3, (3, 6)), FoldPlan(2, (2, 4))),
    "private": (
        FoldPlan(3, (3, 4, 7), order="cycle", private=PRIVATE),
        FoldPlan(2, (2, 3, 5), order="cycle", private=PRIVATE),
    ),
    "group": (FoldPlan(3, (3, 4)), FoldPlan(4, (4, 7), order="group", groups=(2, 2), private=Private(film=True))),
    "one_for_all": (FoldPlan(3, (3, 5, 6)), FoldPlan(3, (3,))),
}


@pytest.mark.main
@pytest.mark.parametrize("name", families(DECODERS))
@pytest.mark.parametrize(("plan", "decoder"), list(PLANS.values()), ids=list(PLANS))
def test_sums_are_what_torch_counts_in_the_folded_model(name: str, plan: FoldPlan, decoder: FoldPlan) -> None:
    spec = tiny_spec(name, decoder.num_layers)
    planned = PlannedModel(spec, plan, decoder)
    model = fold_on_meta(spec, plan, 9, decoder)
    torch.nn.Module.eval(model)
    inputs, stack = _meta_inputs(model), decoder_stack_of(model)
    assert stack is not None
    for position, cost in enumerate(plan_costs(planned, 9)):
        set_depths(model, cost.depth)
        assert cost.macs_per_audio_second == count_macs(model, inputs) / MACS_SECONDS
        stock = unroll(model, cost.depth)
        assert cost.params_unrolled == count_parameters(stock)
        if not plan.private.lora_rank:  # which is merged in each pass
            assert count_macs(stock, inputs) / MACS_SECONDS == cost.macs_per_audio_second
        private = count_private(stack_of(model), cost.depth) + count_private(stack, stack.run_depths[0])
        assert cost.params_private == private
        assert (cost.params_stored, cost.bytes_stored) == (count_parameters(model), count_bytes(model))
        assert cost.decoder_path == decoder.all_paths()[position if len(decoder.depths) > 1 else 0]
    assert bytes_at_precisions(planned, 9) == {each: count_bytes(model, each) for each in PRECISIONS}
    set_depths(model, plan.depths)
    joint = joint_cost(planned, 9)
    assert joint.macs_per_audio_second == count_macs(model, inputs) / MACS_SECONDS
    assert joint.kept_bytes_per_audio_second == count_kept_bytes(model, inputs) / MACS_SECONDS


@pytest.mark.main
def test_a_step_that_draws_depths_is_the_mean_of_its_draws() -> None:
    spec, plan = tiny_spec("whisper", 2), FoldPlan(3, (3, 4, 6, 7))
    decoder = FoldPlan(2, (2, 3, 5, 6))
    model = fold_on_meta(spec, plan, 9, decoder)
    torch.nn.Module.eval(model)
    macs, kept = [], []
    for (drawn,) in combinations((4, 6), 1):
        set_depths(model, (3, drawn, 7))
        macs.append(count_macs(model, _meta_inputs(model)) / MACS_SECONDS)
        kept.append(count_kept_bytes(model, _meta_inputs(model)) / MACS_SECONDS)
    cost = joint_cost(PlannedModel(spec, plan, decoder), 9, sampled=1)
    assert cost.macs_per_audio_second == pytest.approx(statistics.fmean(macs), rel=1e-12)
    assert cost.kept_bytes_per_audio_second == max(kept)


@pytest.mark.main
@pytest.mark.parametrize("name", families(DECODERS))
def test_costs_of_a_model_are_those_of_its_plan(name: str) -> None:
    plan, decoder = PLANS["private"]
    planned = plan_costs(PlannedModel(tiny_spec(name, 2), plan, decoder), 9)
    assert costs_of(folded(name, plan, decoder)) == planned
    assert costs_of(folded(name, plan))[-1].decoder_path is None


@pytest.mark.main
def test_plan_shows_both_paths_and_the_saving_of_the_whole_model(capsys: pytest.CaptureFixture[str]) -> None:
    small = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 500}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = ["an4", "model.family=whisper", f"model.config={json.dumps({**small, **heads})}"]
    both = ["fold.num_layers=2", "fold.depths=[2,4]", "fold.decoder.num_layers=2", "fold.decoder.depths=[2,4]"]
    main(["plan", *model, *both, "--json"])
    planned = json.loads(capsys.readouterr().out)
    assert [each["decoder_path"] for each in planned["depths"]] == [[0, 1], [0, 0, 1, 1]]
    assert planned["decoder"] == {"num_layers": 2, "private": "none"}
    main(["plan", *model, "fold.num_layers=4", "fold.depths=[4]", "model.config.decoder_layers=4", "--json"])
    alone = json.loads(capsys.readouterr().out)
    assert planned["params_unrolled"] == alone["params_stored"]
    assert planned["saved_percent"] == round(100 * (1 - planned["params_stored"] / alone["params_stored"]), 2)
    assert planned["depths"][1]["macs_per_audio_second"] == alone["depths"][0]["macs_per_audio_second"]
    main(["plan", *model, *both])
    assert "decoder paths share stored layers only" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", *model, *both, "model.config.decoder_layers=3"])
    assert "model.config.decoder_layers: must equal fold.decoder.num_layers = 2" in capsys.readouterr().err


def test_a_decoder_that_a_family_does_not_have_is_refused() -> None:
    planned = PlannedModel(tiny_spec("conformer"), FoldPlan(3, (3, 6)), FoldPlan(2, (2, 4)))
    with pytest.raises(UserError, match=r"^fold\.decoder: conformer has no decoder that can be folded; remove it$"):
        plan_costs(planned, 9)
    planned = PlannedModel(
        tiny_spec("whisper"), FoldPlan(3, (3, 6)), FoldPlan(2, (2, 4), private=Private(lora_rank=99))
    )
    with pytest.raises(UserError, match=r"^fold\.decoder\.lora_rank: 99 is not a valid LoRA rank"):
        plan_costs(planned, 9)
