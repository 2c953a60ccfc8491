"""Private parts: no effect at first, never on the seed path, counted to the unit, one gradient for each use."""

import copy
import pickle

import pytest
import torch
from torch import nn

from foldray import FoldPlan, fold
from foldray.folding.plan import Private
from foldray.folding.private import NORMS, is_projection
from foldray.folding.stack import FoldedStack
from foldray.models.count_model import count_private
from foldray.models.fold import set_depths, stack_of
from tests.support.tiny import crossed, families, inputs_for, noise, run, tiny_model

KINDS = [Private(norms=True), Private(lora_rank=4), Private(film=True), Private(norms=True, lora_rank=4, film=True)]
DEPTHS = (3, 5, 8)


@pytest.mark.parametrize(("name", "private"), crossed({str(kind): kind for kind in KINDS}, str(KINDS[-1])))
def test_fresh_private_parts_change_nothing_and_the_seed_never_meets_them(name: str, private: Private) -> None:
    plain = fold(tiny_model(name), FoldPlan(3, DEPTHS, order="cycle"))
    own = fold(tiny_model(name), FoldPlan(3, DEPTHS, order="cycle", private=private))
    inputs = inputs_for(own, [noise(0.8), noise(0.5, seed=1)])
    with torch.no_grad():
        shared_PBTV = run(plain, inputs).unflatten(0, (3, 2))
        assert torch.equal(run(own, inputs).unflatten(0, (3, 2)), shared_PBTV)
        for key, parameter in own.named_parameters():
            if ".private." in key:
                parameter.fill_(float("nan"))
        poisoned_PBTV = run(own, inputs).unflatten(0, (3, 2))
    assert torch.equal(poisoned_PBTV[0], shared_PBTV[0])
    assert poisoned_PBTV[1].isnan().any()


@pytest.mark.parametrize("private", KINDS, ids=str)
def test_each_use_has_parts_of_its_own(private: Private) -> None:
    """Depth 5 (0 1 2 0 1) trains the first repeats of layers 0 and 1; depth 8 those of layer 2 and the second ones."""
    model = fold(tiny_model("wav2vec2-stable"), FoldPlan(3, DEPTHS, order="cycle", private=private))
    inputs = inputs_for(model, [noise(0.8)])
    reached = {}
    for depth in DEPTHS:
        set_depths(model, [depth])
        model.zero_grad()
        run(model, inputs).square().mean().backward()
        own = [key for key, p in model.named_parameters() if ".private." in key and p.grad is not None]
        reached[depth] = {(int(k.split("layers.")[1][0]), int(k.split("private.")[1][0])) for k in own}
    assert reached == {3: set(), 5: {(0, 1), (1, 1)}, 8: {(0, 1), (1, 1), (2, 1), (0, 2), (1, 2)}}


@pytest.mark.parametrize("name", families())
def test_their_cost_is_counted_to_the_unit(name: str) -> None:
    """Against the shapes of the stock block, for three layers of which one is used three times and one twice."""
    plan = {"num_layers": 3, "depths": (3, 6), "paths": ((0, 1, 2), (0, 0, 0, 1, 2, 2))}
    before = sum(p.numel() for p in tiny_model(name).parameters())
    block = stack_of(fold(tiny_model(name), FoldPlan(**plan))).physical_layers()[1]  # WavLM's first one has more
    norms = sum(p.numel() for m in block.modules() if isinstance(m, NORMS) for p in m.parameters())
    matrices = [m for m in block.modules() if is_projection(m)]
    low_rank = sum(4 * sum(m.weight.shape[:2]) for m in matrices if min(m.weight.shape[:2]) > 4)
    ends = ("out_proj", "o_proj", "linear_out", "output_dense", "linear2", "fc2", "pointwise_conv2")
    branches = [m for key, m in block.named_modules() if key.rsplit(".", 1)[-1] in ends]
    film = sum(m.weight.shape[0] * (1 + (m.bias is not None)) for m in branches)
    assert len(branches) >= 2
    for private, one_use in zip(KINDS, (norms, low_rank, film, norms + low_rank + film), strict=True):
        model = fold(tiny_model(name), FoldPlan(**plan, private=private))
        assert sum(p.numel() for p in model.parameters()) - before == 3 * one_use
        assert [count_private(stack_of(model), depth) for depth in (3, 6)] == [0, 3 * one_use]


def test_lora_goes_where_it_is_told() -> None:
    private = Private(lora_rank=2, lora_on=("q_proj", "v_proj"))
    model = fold(tiny_model("wav2vec2"), FoldPlan(3, (3, 6), private=private))
    named = {key.split(".private.")[0].rsplit(".", 1)[-1] for key in model.state_dict() if ".private." in key}
    assert named == {"q_proj", "v_proj"}


def test_published_shares_of_wav2vec2_base() -> None:
    """For four more uses: norms 0.013 % of wav2vec2-base, LoRA of rank 8 on every projection 0.47 %."""
    import transformers

    shares = {}
    for private in (Private(), Private(norms=True), Private(lora_rank=8)):
        with torch.device("meta"):
            model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(num_hidden_layers=8))
            shares[str(private)] = sum(
                p.numel() for p in fold(model, FoldPlan(8, (8, 12), private=private)).parameters()
            )
    norms, lora = (shares[key] - shares["none"] for key in ("norms", "lora8"))
    assert norms == 4 * 2 * 2 * 768
    assert lora == 4 * 8 * (4 * 2 * 768 + 2 * (768 + 3072))
    assert [round(100 * own / 94_396_320, 3) for own in (norms, lora)] == [0.013, 0.469]


def test_a_block_without_such_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="private: ReLU has no module that 'norms' applies to"):
        FoldedStack([nn.ReLU()], FoldPlan(1, (1, 2), private=Private(norms=True)))


@pytest.mark.parametrize("name", ["parakeet", "wav2vec2-stable"])
@pytest.mark.parametrize("frozen", ["stock", "private"])
def test_evaluation_does_not_change_what_is_trained(name: str, frozen: str) -> None:
    model = fold(tiny_model(name), FoldPlan(3, (3, 6), private=KINDS[-1]))
    for key, parameter in model.named_parameters():
        if (".private." in key) == (frozen == "private"):
            parameter.requires_grad_(False)
    before = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    with torch.no_grad():
        run(model, inputs_for(model, [noise(0.5)]))
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == before


@pytest.mark.parametrize("name", ["parakeet", "conformer"])
def test_models_with_private_parts_can_be_copied_and_pickled(name: str) -> None:
    model = fold(tiny_model(name), FoldPlan(3, (3, 6), private=KINDS[-1]))
    stack_of(model).keep_output = True
    inputs = inputs_for(model, [noise(0.5)])
    expected = run(model, inputs)
    stack_of(model).take_output()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(again, inputs), expected)
        assert {p.data_ptr() for p in again.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


@pytest.mark.parametrize(
    ("private", "message"),
    [
        (Private(lora_rank=100), "lora_rank: 100 is not a valid LoRA rank for any projection; use less than 32"),
        (
            Private(lora_rank=32, lora_on=("q_proj",)),
            "lora_rank: 32 is not a valid LoRA rank for 'q_proj'; use less",
        ),
        (Private(lora_rank=2, lora_on=("query",)), "lora_on: a block has no projection 'query'; it has intermediate"),
    ],
)
def test_parts_that_cannot_be_are_refused_before_anything_is_changed(private: Private, message: str) -> None:
    model = tiny_model("wav2vec2-conformer")
    if "q_proj" in private.lora_on:
        model = tiny_model("wav2vec2")
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        fold(model, FoldPlan(3, (3, 6), private=private))
    assert [type(module) for module in model.modules()] == before
