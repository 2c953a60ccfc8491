"""Seeds from deeper checkpoints: which layers, their means, what low-rank parts make up for; strict loading."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foldray import FoldPlan, fold, fold_checkpoint, load_model
from foldray.errors import UserError
from foldray.folding.plan import Private
from foldray.models.families import FAMILIES, transformers_class
from foldray.models.fold import set_depths, stack_of
from foldray.models.from_checkpoint import initial_distances, load_folded
from foldray.models.save_load import save_model
from foldray.models.seed_layers import low_rank, seed_blocks, seed_layers, sources_of
from foldray.models.stock import write_random_checkpoint
from foldray.models.tokenizer import Tokenizer
from tests.support.tiny import (
    CONFIGS,
    TOKENIZER,
    crossed,
    families,
    frames_for,
    inputs_for,
    noise,
    run,
    tiny_model,
    tiny_spec,
)


def saved(name: str, folder: Path, num_layers: int = 6) -> tuple[torch.nn.Module, Path]:
    """A stock checkpoint whose layers all differ."""
    model = tiny_model(name, num_layers)
    with torch.no_grad():
        for i, layer in enumerate(model.get_submodule(FAMILIES[CONFIGS[name][0]].encoder).layers):
            for parameter in layer.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    model.save_pretrained(folder)
    return model, folder


def test_layers_taken() -> None:
    assert seed_layers(12, 8, "stepwise") == [0, 2, 3, 5, 6, 8, 9, 11]
    assert seed_layers(12, 3, "first") == [0, 1, 2]
    assert sources_of(FoldPlan(3, (3, 6)), 6) == {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3, (2, 0): 4, (2, 1): 5}
    cycle = sources_of(FoldPlan(3, (3, 5), order="cycle"), 5)
    assert cycle == {(0, 0): 0, (1, 0): 1, (2, 0): 2, (0, 1): 3, (1, 1): 4}


@pytest.mark.parametrize("name", families())
def test_the_average_is_the_mean_of_the_layers_stood_for(name: str, tmp_path: Path) -> None:
    stock, folder = saved(name, tmp_path)
    model = fold_checkpoint(str(folder), FoldPlan(3, (3, 6)), "average")
    layers = stock.get_submodule(FAMILIES[CONFIGS[name][0]].encoder).layers
    for number, block in enumerate(stack_of(model).physical_layers()):
        for key, parameter in block.named_parameters():
            pair = [
                p
                for i in (2 * number, 2 * number + 1)
                if (p := dict(layers[i].named_parameters()).get(key)) is not None
            ]
            torch.testing.assert_close(parameter, torch.stack(pair).mean(0), rtol=0, atol=1e-7)


@pytest.mark.main
@pytest.mark.parametrize(
    ("name", "method"), crossed({each: each for each in ("stepwise", "first", "average", "svd")}, "svd")
)
def test_a_seed_of_all_layers_is_the_checkpoint(name: str, method: str, tmp_path: Path) -> None:
    stock, folder = saved(name, tmp_path)
    model = fold_checkpoint(str(folder), FoldPlan(6, (6, 9), private=Private(lora_rank=2)), method)
    inputs = inputs_for(stock, [noise(0.9), noise(0.6, seed=1)])
    set_depths(model, [6])
    with torch.no_grad():
        assert torch.equal(run(model, inputs), run(stock.eval(), inputs))


@pytest.mark.main
@pytest.mark.parametrize("name", families())
def test_chosen_layers_are_the_checkpoint_without_the_others(name: str, tmp_path: Path) -> None:
    stock, folder = saved(name, tmp_path)
    family = FAMILIES[CONFIGS[name][0]]
    model = fold_checkpoint(str(folder), FoldPlan(4, (4, 6)), layers=[0, 1, 3, 4])
    layers = stock.get_submodule(family.encoder).layers
    for number in (5, 2):
        del layers[number]
    family.set_layers(stock.config, 4)
    inputs = inputs_for(stock, [noise(0.9), noise(0.6, seed=1)])
    set_depths(model, [4])
    with torch.no_grad():
        assert torch.equal(run(model, inputs), run(stock.eval(), inputs))


@pytest.mark.parametrize("name", ["wav2vec2-stable", "wavlm", "parakeet"])
def test_the_residual_of_chosen_layers_is_theirs(name: str, tmp_path: Path) -> None:
    stock, folder = saved(name, tmp_path)
    layers = stock.get_submodule(FAMILIES[CONFIGS[name][0]].encoder).layers
    parts = Private(norms=True, lora_rank=31)
    chosen = [0, 2, 3, 5]
    stack = stack_of(fold_checkpoint(str(folder), FoldPlan(2, (2, 4), private=parts), "svd", layers=chosen))
    compared = 0
    for block, source in zip(stack.physical_layers(), (chosen[1], chosen[3]), strict=True):
        for path, module in block.named_modules():
            wanted = layers[source].get_submodule(path) if hasattr(module, "private") else None
            if wanted is not None and wanted.weight.ndim == 1:
                assert torch.equal(module.at_use("weight", "1"), wanted.weight)
                compared += 1
    assert compared


def test_fewer_chosen_layers_are_averaged_and_the_distance_is_to_all(tmp_path: Path) -> None:
    stock, folder = saved("wav2vec2", tmp_path)
    spec = tiny_spec("wav2vec2", 2).model_copy(update={"seed_layers": "average", "layers": (0, 1, 4, 5)})
    model, sources, _ = load_folded(spec, str(folder), FoldPlan(2, (2, 4)), TOKENIZER, 0)
    layers = stock.get_submodule("wav2vec2.encoder").layers
    for ours, pair in zip(stack_of(model).physical_layers(), ((0, 1), (4, 5)), strict=True):
        means = zip(*(layers[i].parameters() for i in pair), strict=True)
        for parameter, (a, b) in zip(ours.parameters(), means, strict=True):
            torch.testing.assert_close(parameter, (a + b) / 2, rtol=0, atol=1e-7)
    assert len(sources) == 6
    for ours, theirs in zip(sources, layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("hubert", [0, 1, 6], r"model\.layers: \[0, 1, 6\] must be ascending numbers up to 5, the checkpoint's last"),
        ("hubert", [], r"model\.layers: \[\] are fewer than num_layers = 3"),
        ("hubert", [0, 2, 1], r"model\.layers: \[0, 2, 1\] must be ascending"),
        ("hubert", [0, 1, 1], r"model\.layers: \[0, 1, 1\] must be ascending"),
        ("hubert", [-1, 1, 2], r"model\.layers: \[-1, 1, 2\] must be ascending"),
        ("hubert", [0, 1], r"model\.layers: \[0, 1\] are fewer than num_layers = 3"),
        ("wavlm", [1, 2, 3], r"model\.layers: \[1, 2, 3\] must begin with 0"),
    ],
)
def test_layers_that_can_not_be_chosen_are_refused(name: str, layers: list[int], message: str, tmp_path: Path) -> None:
    _, folder = saved(name, tmp_path)
    with pytest.raises(UserError, match=f"^{message}"):
        fold_checkpoint(str(folder), FoldPlan(3, (3, 6)), layers=layers)


def test_low_rank_is_the_best_of_its_rank() -> None:
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrix)
    for rank in range(1, 9):
        b, a = low_rank(matrix, rank)
        assert (b.shape, a.shape) == ((8, rank), (rank, 12))
        assert float((b @ a - matrix).norm()) == pytest.approx(float(values[rank:].norm()), abs=1e-5)


@pytest.mark.main
@pytest.mark.parametrize("name", ["wav2vec2-stable", "hubert", "parakeet", "conformer"])
@pytest.mark.parametrize("rank", [4, 31])
def test_private_parts_make_up_for_what_the_average_leaves_out(name: str, rank: int, tmp_path: Path) -> None:
    """Each repeated use is as near to the layer it stands for as its rank allows; its norms are that layer's own."""
    stock, folder = saved(name, tmp_path)
    layers = stock.get_submodule(FAMILIES[CONFIGS[name][0]].encoder).layers
    model = fold_checkpoint(str(folder), FoldPlan(3, (3, 6), private=Private(norms=True, lora_rank=rank)), "svd")
    fitted = 0
    for number, block in enumerate(stack_of(model).physical_layers()):
        for path, module in block.named_modules():
            if not hasattr(module, "private"):
                continue
            wanted = layers[2 * number + 1].get_submodule(path)
            if wanted.weight.ndim == 1:
                assert torch.equal(module.at_use("weight", "1"), wanted.weight)
                assert torch.equal(module.at_use("bias", "1"), wanted.bias)
                continue
            values = torch.linalg.svdvals((wanted.weight - module.at_use("weight", "0")).flatten(1))
            missing = float((module.at_use("weight", "1") - wanted.weight).norm())
            assert missing == pytest.approx(float(values[rank:].norm()), abs=1e-5)
            fitted += 1
    assert fitted >= 3 * 6


def test_distance_to_itself_is_zero(tmp_path: Path) -> None:
    stock, folder = saved("wavlm", tmp_path)
    model = fold_checkpoint(str(folder), FoldPlan(6, (6, 8), order="cycle"))
    distances = initial_distances(
        model,
        list(stock.wavlm.encoder.layers),
        inputs_for(stock, [noise(0.9)]),
        torch.tensor(frames_for(stock, [noise(0.9)])),
    )
    assert distances[6] == 0
    assert distances[8] > 0.01


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-bert", "whisper", "conformer"])
def test_incomplete_and_surplus_checkpoints_are_refused_by_key(name: str, tmp_path: Path) -> None:
    _, folder = saved(name, tmp_path)
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if "layers.1." in key and "encoder" in key)
    save_file({k: v for k, v in weights.items() if k != key}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"1 missing or misshapen keys, such as {key}"):
        fold_checkpoint(str(folder), FoldPlan(3, (3, 6)))
    save_file({**weights, "ornament.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 unexpected keys, such as ornament\.weight"):
        fold_checkpoint(str(folder), FoldPlan(3, (3, 6)))
    transposed = {**weights, key: torch.ones(3, 5)}
    save_file(transposed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"1 missing or misshapen keys, such as {key}"):
        fold_checkpoint(str(folder), FoldPlan(3, (3, 6)))


def test_the_checkpoints_own_feature_extractor_is_kept(tmp_path: Path) -> None:
    """WavLM base was trained on audio as it is, WavLM large on normalised audio."""
    _, folder = saved("wavlm", tmp_path / "stock")
    extractor = transformers_class("Wav2Vec2FeatureExtractor")
    for normalised in (False, True):
        extractor(do_normalize=normalised, return_attention_mask=True).save_pretrained(folder)
        model = fold_checkpoint(str(folder), FoldPlan(3, (3, 6)))
        save_model(model, tmp_path / "folded", TOKENIZER)
        for each in (model, load_model(str(tmp_path / "folded"))):
            heard = inputs_for(each, [noise(0.5), noise(0.8, seed=1)])
            assert torch.equal(heard["input_values"][0, :8000], noise(0.5)) == (not normalised)
            assert heard["attention_mask"].sum(1).tolist() == [8000, 12800]
    extractor(sampling_rate=8000).save_pretrained(folder)
    with pytest.raises(UserError, match="expects audio at 8000 Hz"):
        fold_checkpoint(str(folder), FoldPlan(3, (3, 6)))


@pytest.mark.parametrize("name", families(name for name in CONFIGS if FAMILIES[CONFIGS[name][0]].ctc))
def test_from_scratch_a_ctc_head_expects_blanks(name: str, tmp_path: Path) -> None:
    write_random_checkpoint(tiny_spec(name), 3, TOKENIZER, 1, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bias = weights.get("ctc_head.bias", weights.get("lm_head.bias"))
    assert bias is not None
    # Without its weights it would say blank in two of three frames.
    others = torch.zeros(len(bias) - 1)
    assert float(torch.cat([bias[:1], others]).softmax(0)[0]) == pytest.approx(2 / 3)
    assert float(bias[1:].abs().max()) < 0.5


def test_a_head_for_other_units_starts_anew_even_at_the_same_size(tmp_path: Path) -> None:
    spec = tiny_spec("wav2vec2")
    write_random_checkpoint(spec, 3, TOKENIZER, 1, tmp_path)
    plan = FoldPlan(3, (3, 6))
    model, _, fresh = load_folded(spec, str(tmp_path), plan, TOKENIZER, 0)
    assert fresh == []
    assert torch.equal(model.lm_head.weight, load_file(tmp_path / "model.safetensors")["lm_head.weight"])
    others = Tokenizer([*TOKENIZER.vocabulary[:-1], "Z"])
    renewed, _, fresh = load_folded(spec, str(tmp_path), plan, others, 0)
    assert fresh == ["lm_head.weight", "lm_head.bias"]
    assert not torch.equal(model.lm_head.weight, renewed.lm_head.weight)
    again, *_ = load_folded(spec, str(tmp_path), plan, others, 0)
    assert torch.equal(again.lm_head.weight, renewed.lm_head.weight)
    _, _, fresh = load_folded(spec, str(tmp_path), plan, Tokenizer([*TOKENIZER.vocabulary, "Z"]), 0)
    assert fresh == ["lm_head.bias", "lm_head.weight"]


def test_seeds_that_cannot_be_are_refused(tmp_path: Path) -> None:
    _, folder = saved("hubert", tmp_path)
    with pytest.raises(UserError, match="the seed is made from 6 layers, the fold needs 8"):
        fold_checkpoint(str(folder), FoldPlan(8, (8, 12)))
    with pytest.raises(UserError, match="add lora to private"):
        fold_checkpoint(str(folder), FoldPlan(3, (3, 6)), "svd")
    with pytest.raises(UserError, match="the seed is made from 6 layers: depth 6 has no path"):
        fold_checkpoint(str(folder), FoldPlan(2, (2, 3), paths=((0, 1), (0, 1, 1))), "average")
    with pytest.raises(UserError, match="not found; give a folder, a URI or a hub name"):
        fold_checkpoint(str(tmp_path / "nowhere"), FoldPlan(2, (2, 3)))
    transformers_class("BertConfig")(num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="is a bert, which foldray does not fold"):
        fold_checkpoint(str(tmp_path / "bert"), FoldPlan(2, (2, 3)))


def test_a_checkpoint_as_pretraining_leaves_it_gets_a_fresh_head_and_a_warning(tmp_path: Path) -> None:
    stock, _ = saved("hubert", tmp_path / "ctc")
    stock.hubert.save_pretrained(tmp_path / "headless")
    with pytest.warns(UserWarning, match="has no head of HubertForCTC; it is initialised at random"):
        model = fold_checkpoint(tmp_path / "headless", FoldPlan(6, (6, 8)))
    ours, theirs = (each.hubert.encoder.layers[5].final_layer_norm.weight for each in (model, stock))
    assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match=r"HubertModel: can't be folded: .* give HubertForCTC"):
        fold(stock.hubert, FoldPlan(6, (6, 8)))


def test_a_foldable_folder_is_not_folded_again_at_the_cost_of_its_private_parts(tmp_path: Path) -> None:
    save_model(fold(tiny_model("hubert"), FoldPlan(3, (3, 6), private=Private(norms=True))), tmp_path)
    with pytest.raises(UserError, match="private parts, which would be lost; open it with load_model"):
        fold_checkpoint(tmp_path, FoldPlan(3, (3, 4)))
    with pytest.raises(UserError, match="'mean' must be one of stepwise, first, average, svd"):
        fold_checkpoint(str(saved("hubert", tmp_path / "stock")[1]), FoldPlan(3, (3, 6)), "mean")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="write one with save_model, or fold a stock checkpoint with fold_checkpoint"):
        load_model(str(tmp_path / "stock"))
    with pytest.raises(UserError, match="nowhere: not found"):
        load_model(str(tmp_path / "nowhere"))


def test_blocks_of_an_average_are_copies() -> None:
    sources = [torch.nn.Linear(2, 2) for _ in range(4)]
    blocks = seed_blocks(sources, FoldPlan(2, (2, 4)), "average")
    assert not {p.data_ptr() for b in blocks for p in b.parameters()} & {
        p.data_ptr() for s in sources for p in s.parameters()
    }
