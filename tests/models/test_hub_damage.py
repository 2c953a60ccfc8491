"""Damaged and hostile models on the hub: one line each, and nothing outside the repository is asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load, save

from tests.support.hub import Hub, read_files
from tests.support.hub_models import Files, refusal

pytest_plugins = ["tests.support.hub_models"]


def _weights(files: Files, prefix: str) -> Files:
    tensors = load(files["model.safetensors"])
    return {**files, "model.safetensors": save({f"{prefix}{key}": t for key, t in tensors.items()}, {"format": "pt"})}


def _index(files: Files, shard: str) -> Files:
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load(files["model.safetensors"]), shard)}
    others = {name: content for name, content in files.items() if name != "model.safetensors"}
    return others | {"model.safetensors.index.json": json.dumps(index).encode()}


def _config(files: Files, **fields: object) -> Files:
    return {**files, "config.json": json.dumps({**json.loads(files["config.json"]), **fields}).encode()}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DAMAGE: dict[str, tuple[Callable[[Files], Files], str]] = {
    "pointer": (lambda f: {**f, "model.safetensors": POINTER}, "model.safetensors is a pointer of Git LFS"),
    "module": (lambda f: _weights(f, "module."), "as a model wrapped by DDP or torch.compile"),
    "compiled": (lambda f: _weights(f, "_orig_mod."), "as a model wrapped by DDP or torch.compile"),
    "cut": (lambda f: {**f, "model.safetensors": f["model.safetensors"][:99]}, "model.safetensors is damaged"),
    "index above": (lambda f: _index(f, "../x.safetensors"), "names '../x.safetensors', which is not a .safetensors"),
    "index absolute": (lambda f: _index(f, "/x.safetensors"), "names '/x.safetensors', which is not a .safetensors"),
    "index pickle": (lambda f: _index(f, "x.bin"), "names 'x.bin', which is not a .safetensors file beside it"),
    "index lacking": (lambda f: _index(f, "x.safetensors"), "org/damaged has no x.safetensors"),
    "index damaged": (lambda f: _index(f, "x") | {"model.safetensors.index.json": b"{"}, "index.json: is damaged"),
    "none": (lambda f: {"config.json": f["config.json"]}, "org/damaged has no model.safetensors"),
    "adapter": (lambda f: {**f, "adapter_config.json": b"{}"}, "org/damaged is an adapter (adapter_config.json)"),
    "no config": (lambda f: {n: c for n, c in f.items() if n != "config.json"}, "org/damaged has no config.json"),
    "config": (lambda f: {**f, "config.json": b"{"}, "org/damaged does not load"),
    "auto_map": (lambda f: _config(f, auto_map={"AutoConfig": "own.Config"}), "names code of its own (auto_map)"),
    "huge": (lambda f: _config(f, intermediate_size=10**9), "describes a model of"),
    "extractor": (lambda f: {**f, "preprocessor_config.json": b"{"}, "preprocessor_config.json"),
    "private": (lambda f: {**f, "private.safetensors": b""}, "is a folded model with private parts"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_on_the_hub_is_one_line(kind: str, hub: Hub, stock: Path) -> None:
    damage, problem = DAMAGE[kind]
    hub.add("org/damaged", damage(read_files(stock)))
    assert problem in refusal("org/damaged")
    named = [path for path in hub.downloads() if path.endswith(("x.bin", "x.safetensors"))]
    assert not named


def test_a_small_file_that_is_large_is_not_copied(hub: Hub, stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foldray.models.config_checks.MOST_SMALL_BYTES", 10_000)
    hub.add("org/damaged", {**read_files(stock), "tokenizer.json": bytes(10_001)})
    assert "org/damaged/tokenizer.json has 10,001 bytes, over the limit of 10,000" in refusal("org/damaged")
    assert not [path for path in hub.downloads() if path.endswith("tokenizer.json")]
