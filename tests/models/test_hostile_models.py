"""Model folders of anybody: no pickle is opened, damage names its file, and nothing wrong loads in silence."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foldray import FoldPlan, fold_checkpoint, load_model, save_model
from foldray.config.model import ModelSpec
from foldray.errors import UserError
from foldray.folding.plan import Private
from foldray.models.count import fold_on_meta
from foldray.models.families import FAMILIES
from foldray.models.int8 import to_int8
from foldray.models.processor import read_tokenizer
from foldray.models.stock import load_stock
from foldray.models.stock_config import read_config
from foldray.models.weight_files import check_weights
from foldray.results.auto_depth import read_auto
from foldray.storage.layout import INT8_FILE
from tests.support.tiny import TOKENIZER, folded, tiny_model

PLAN = FoldPlan(2, (2, 3), private=Private(norms=True))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folded("wav2vec2", PLAN), folder, TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    tiny_model("wav2vec2", 2).save_pretrained(folder)
    return folder


def _edit(folder: Path, name: str, **fields: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def _key(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.endswith("layers.1.attention.q_proj.weight"))


class _Exploit:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def _index(folder: Path, shard: str) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("shard", ["shard.bin", "pytorch_model.bin", "../shard.safetensors", "/shard.safetensors"])
def test_an_index_names_only_safetensors_in_its_folder(shard: str, stock: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "model"))
    _index(folder, shard)
    if shard.endswith(".bin"):
        (folder / shard).write_bytes(pickle.dumps(_Exploit(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"index\.json names .+, which is not a \.safetensors file beside it"):
        fold_checkpoint(str(folder), FoldPlan(2, (2,)))
    assert not (tmp_path / "ran").exists()


def test_shards_of_safetensors_load(stock: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "model"))
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    _index(folder, "model-00001-of-00001.safetensors")
    shards, whole = (fold_checkpoint(str(place), FoldPlan(2, (2,))).state_dict() for place in (folder, stock))
    assert all(torch.equal(shards[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_named_with_the_mend(name: str, stock: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Exploit(tmp_path / "ran")))
    with pytest.raises(UserError, match=rf"has weights in {name} only, not model\.safetensors; .*save_pretrained"):
        fold_checkpoint(str(folder), FoldPlan(2, (2,)))
    assert not (tmp_path / "ran").exists()


def test_the_configuration_cannot_name_a_weight_file(stock: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "model"))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Exploit(tmp_path / "ran")))
    _edit(folder, "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(UserError, match="names a weight file"):
        fold_checkpoint(str(folder), FoldPlan(2, (2,)))
    assert not (tmp_path / "ran").exists()


_CONVOLUTIONS: dict[str, Any] = {
    **dict.fromkeys(("conv_dim", "conv_kernel", "conv_stride"), [8] * 2000),
    "num_feat_extract_layers": 2000,
}


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, _key(tensors): torch.full_like(tensors[_key(tensors)], float("nan"))}


def _integers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, _key(tensors): tensors[_key(tensors)].to(torch.int8)}


def _truncate(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:200])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (_pointer, "is a pointer of Git LFS, not the weights; run `git lfs pull`"),
    "nan": (lambda f: _weights(f, _nan), r"the weights \S+q_proj\.weight hold NaN or infinity"),
    "integers": (lambda f: _weights(f, _integers), r"has I8 in \S+q_proj\.weight"),
    "module": (lambda f: _weights(f, lambda t: {f"module.{k}": v for k, v in t.items()}), "wrapped by DDP"),
    "compiled": (lambda f: _weights(f, lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}), "or torch.compile"),
    "cut": (lambda f: _truncate(f, "model.safetensors"), r"model\.safetensors is damaged"),
    "missing": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "private cut": (lambda f: _truncate(f, "private.safetensors"), r"private\.safetensors: is damaged"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter"),
    "huge": (lambda f: _edit(f, "config.json", intermediate_size=10**9), "describes a model of [0-9,]+ parameters"),
    "adapter layers": (lambda f: _edit(f, "config.json", num_adapter_layers=10**9), "num_adapter_layers is 1000000000"),
    "convolutions": (lambda f: _edit(f, "config.json", **_CONVOLUTIONS), "not 0 to 1024"),
    "auto_map": (lambda f: _edit(f, "config.json", auto_map={"AutoConfig": "own.C"}), "names code of its own"),
    "dropout": (
        lambda f: _edit(f, "config.json", hidden_dropout=float("nan")),
        "dropout is nan; set it to a number",
    ),
    "dropout over 1": (lambda f: _edit(f, "config.json", attention_dropout=1.5), "attention_dropout is 1.5; set it to"),
    "not finite": (
        lambda f: _edit(f, "config.json", initializer_range=float("inf")),
        "range is inf; set it to a",
    ),
    "layers": (lambda f: _edit(f, "config.json", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "no layers": (lambda f: _edit(f, "config.json", num_hidden_layers="x"), r"config\.json"),
    "config": (lambda f: (f / "config.json").write_text("{"), r"config\.json: does not load"),
    "config list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: does not load"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 10**5), r"config\.json: does not load"),
    "config type": (lambda f: _edit(f, "config.json", hidden_size="wide"), r"config\.json|does not load"),
    "extractor": (lambda f: (f / "preprocessor_config.json").write_text("{"), r"preprocessor_config\.json"),
    "extractor list": (lambda f: (f / "preprocessor_config.json").write_text("[]"), r"preprocessor_config\.json"),
    "extractor value": (
        lambda f: _edit(f, "preprocessor_config.json", padding_value=None),
        r"preprocessor_config\.json",
    ),
    "extractor huge": (lambda f: _edit(f, "preprocessor_config.json", feature_size=10**9), "feature_size is over"),
    "vocabulary": (lambda f: (f / "vocab.json").write_text('{"<pad>": 0, "A": 1}'), "has 2 tokens, its head 9 outputs"),
    "vocabulary list": (lambda f: (f / "vocab.json").write_text("[]"), r"vocab\.json: is damaged"),
    "plan list": (lambda f: (f / "fold.json").write_text("[]"), r"fold\.json: is damaged"),
    "plan deep": (lambda f: (f / "fold.json").write_text("[" * 10**5), r"fold\.json: is damaged"),
    "plan field": (lambda f: _edit(f, "fold.json", ornament=1), "it has the unknown field ornament"),
    "plan private": (lambda f: _edit(f, "fold.json", private="all"), r"fold\.json: is not a fold plan"),
    "plan depth": (lambda f: _edit(f, "fold.json", depths=[2, 10**9]), r"depths: use at most 1000"),
    "plan rank": (lambda f: _edit(f, "fold.json", private={"lora_rank": 10**9}), r"lora_rank: use 0 for none, or 1 to"),
    "plan types": (lambda f: _edit(f, "fold.json", depths=["two"]), r"fold\.json: is not a fold plan"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_is_one_line_that_names_the_file(kind: str, good: Path, tmp_path: Path) -> None:
    damage, problem = DAMAGE[kind]
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    damage(folder)
    with pytest.raises(UserError, match=problem) as failed:
        load_model(folder)
    assert "\n" not in str(failed.value)


INT8_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "wide": (lambda f: _edit(f, "config.json", intermediate_size=10**9), "describes a model of [0-9,]+ parameters"),
    "layers": (lambda f: _edit(f, "config.json", num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "scale": (lambda f: _int8(f, _SCALED + ".scale", torch.ones(1, 9)), r"\.scale has the shape \[1, 9\]"),
    "type": (lambda f: _int8(f, _SCALED, torch.ones(8, 8, dtype=torch.int32)), r"q_proj\.weight has the type I32"),
}
_SCALED = "wav2vec2.encoder.layers.1.attention.q_proj.weight"


def _int8(folder: Path, name: str, tensor: torch.Tensor) -> None:
    file = folder / INT8_FILE
    stored = load_file(file)
    assert name in stored
    save_file({**stored, name: tensor}, file)


@pytest.mark.parametrize("kind", INT8_DAMAGE)
def test_a_damaged_int8_model_takes_no_memory(kind: str, good: Path, tmp_path: Path) -> None:
    damage, problem = INT8_DAMAGE[kind]
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    save_file(to_int8(folded("wav2vec2", PLAN).state_dict()), folder / INT8_FILE)
    for file in folder.glob("*.safetensors"):
        if file.name != INT8_FILE:
            file.unlink()
    assert load_model(folder).config.num_hidden_layers == 2
    damage(folder)
    with pytest.raises(UserError, match=problem) as failed:
        load_model(folder)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("heads", [0, 3])
def test_a_configuration_that_gives_no_model_is_one_line(heads: int, stock: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "model"))
    _edit(folder, "config.json", num_attention_heads=heads)
    for load in (lambda: fold_checkpoint(folder, FoldPlan(2, (2,))), lambda: load_stock_of(folder)):
        with pytest.raises(UserError, match=r"config\.json gives no model \(\w+: .*\); correct") as failed:
            load()
        assert "\n" not in str(failed.value)


def load_stock_of(folder: Path) -> object:
    return load_stock(FAMILIES["wav2vec2"], str(folder), read_config(str(folder)), 0)


def test_numbers_of_modules_are_bounded_in_nested_configurations(tmp_path: Path) -> None:
    config = tiny_model("parakeet", 2).config
    config.encoder_config.num_conv_pos_embeddings = 10**9
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="num_conv_pos_embeddings is 1000000000, not 0 to 1024"):
        read_config(str(tmp_path))
    spec = ModelSpec(family="wav2vec2", config={"num_adapter_layers": 10**9, "add_adapter": True})
    with pytest.raises(UserError, match=r"model\.config: num_adapter_layers is 1000000000"):
        fold_on_meta(spec, FoldPlan(2, (2,)), 9)


def test_the_undamaged_model_loads(good: Path) -> None:
    loaded = load_model(good).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in folded("wav2vec2", PLAN).state_dict().items())


def test_no_path_is_deeper_than_the_limit() -> None:
    with pytest.raises(KeyError, match="use at most 1000"):
        FoldPlan(2, (2,)).path(10**9)


SMALL = ("config.json", "vocab.json", "preprocessor_config.json", "fold.json")


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_that_is_large_is_not_read(name: str, good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    with (folder / name).open("r+b") as file:
        file.truncate(2**28 + 1)  # takes no disk
    with pytest.raises(UserError, match=rf"{name}:? has 268,435,457 bytes, over the limit of [0-9,]+; "):
        load_model(folder)


def test_a_checkpoint_copied_from_a_bucket_is_checked_whole(stock: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "model"))
    config = read_config(str(folder))
    check_weights(FAMILIES["wav2vec2"], folder, config, "s3://b/model", "model.checkpoint")
    (folder / "generation_config.json").touch()
    os.truncate(folder / "generation_config.json", 2**26 + 1)
    with pytest.raises(UserError, match=r"s3://b/model/generation_config\.json has 67,108,865 bytes"):
        check_weights(FAMILIES["wav2vec2"], folder, config, "s3://b/model", "model.checkpoint")


def test_tokenizers_and_records_have_their_bounds(tmp_path: Path) -> None:
    for name, size, read in (
        ("subwords.json", 2**26, read_tokenizer),
        ("auto.json", 2**28, lambda uri: read_auto(uri, [2])),
    ):
        file = tmp_path / name
        file.touch()
        os.truncate(file, size + 1)
        with pytest.raises(UserError, match=rf"{name}: has {size + 1:,} bytes, over the limit of {size:,}; copy"):
            read(str(tmp_path))
        file.unlink()
