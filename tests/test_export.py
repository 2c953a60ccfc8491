"""Exports: stock models that equal a depth, and weights of one byte that are worth what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCTC

from foldray import FoldPlan, fold, load_model, unroll
from foldray.export import export_model
from foldray.folding.account import count_bytes
from foldray.folding.quantization import from_int8, is_quantised, to_int8
from foldray.model_folder import INT8_FILE, save_model
from foldray.plan import Private
from foldray.training.job import TrainJob
from tests.test_cli import call
from tests.test_cli import finished as finished
from tests.tiny import UNITS, inputs_for, noise, tiny_model

FAMILIES = ["parakeet", "wav2vec2-stable", "wav2vec2-bert", "hubert"]


def folded(name: str, folder: Path, private: str = "none") -> Any:
    """A fold in a folder, its private parts and biases no longer at zero."""
    model = tiny_model(name, num_layers=2)
    parts = Private(norms=True, lora_rank=2) if private == "norms+lora" else Private()
    fold(model, FoldPlan(num_layers=2, depths=(2, 4), private=parts))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_model(model.eval(), folder, UNITS)
    return model


@pytest.mark.parametrize("private", ["none", "norms+lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_export_says_what_the_fold_says(name: str, private: str, tmp_path: Path) -> None:
    model = folded(name, tmp_path / "fold", private)
    inputs = inputs_for(model, [noise(1.0), noise(0.6, 1)])
    with torch.no_grad():
        shallow, deep = model(**inputs).logits.unflatten(0, (2, -1))

        export_model(str(tmp_path / "fold"), ".", "seed", str(tmp_path / "seed"))
        assert torch.equal(load_model(str(tmp_path / "seed"))(**inputs).logits.unflatten(0, (2, -1))[1], deep)
        stock = AutoModelForCTC.from_pretrained(tmp_path / "seed").eval()
        assert torch.equal(stock(**inputs).logits, shallow)

        for depth, expected in ((None, deep), (2, shallow)):
            place = tmp_path / f"unrolled-{depth}"
            told = export_model(str(tmp_path / "fold"), ".", "unrolled", str(place), depth)
            assert told["depths"] == [depth or 4]
            stock = AutoModelForCTC.from_pretrained(place).eval()
            assert not any("private" in key for key in stock.state_dict())
            assert torch.equal(stock(**inputs).logits, expected)

        told = export_model(str(tmp_path / "fold"), ".", "int8", str(tmp_path / "int8"))
        assert (told["depths"], INT8_FILE in told["files"], "model.safetensors" in told["files"]) == (
            [2, 4],
            True,
            False,
        )
        small = load_model(str(tmp_path / "int8"))
        for key, tensor in from_int8(to_int8(model.state_dict())).items():
            assert torch.equal(small.state_dict()[key], tensor), key
        again = export_model(str(tmp_path / "int8"), ".", "unrolled", str(tmp_path / "again"))
        stock = AutoModelForCTC.from_pretrained(Path(again["model"])).eval()
        assert torch.equal(stock(**inputs).logits, small(**inputs).logits.unflatten(0, (2, -1))[1])
        assert torch.equal(stock(**inputs).logits, unroll(small, 4)(**inputs).logits)


def test_one_byte_a_weight_is_off_by_half_a_step_and_as_large_as_counted() -> None:
    model = tiny_model("wav2vec2")
    state = model.state_dict()
    made = to_int8(state)
    back = from_int8(made)
    assert list(back) == list(state)
    for key, tensor in state.items():
        assert (made[key].dtype == torch.int8) == is_quantised(tensor), key
        if not is_quantised(tensor):
            assert back[key] is tensor
            continue
        largest = tensor.abs().flatten(1).amax(1)
        off = (back[key] - tensor).abs().flatten(1).amax(1)
        assert bool((off <= largest / 254 * 1.001).all()), key
    assert sum(tensor.numel() * tensor.element_size() for tensor in made.values()) == count_bytes(model, "int8")
    silent = {"w": torch.zeros(3, 4)}
    assert torch.equal(from_int8(to_int8(silent))["w"], silent["w"])


def test_an_int8_model_is_scored_and_its_rows_tell_its_bytes(
    capsys: pytest.CaptureFixture[str], finished: TrainJob, spoken: Path, tmp_path: Path
) -> None:
    place = ("--store", str(tmp_path / "store"))
    code, out, err = call(capsys, "export", "run", "--format", "int8", "-o", str(tmp_path / "small"), *place, "--json")
    assert code == 0, err
    assert json.loads(out)["bytes"] == sum(file.stat().st_size for file in (tmp_path / "small").iterdir())
    code, out, err = call(capsys, "evaluate", str(tmp_path / "small"), "--data", str(spoken), *place, "--json")
    assert code == 0, err
    weights = load_file(tmp_path / "small" / INT8_FILE)
    for row in json.loads(out)["rows"]:
        assert row["precision"] == "int8"
        assert row["bytes_stored"] == sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    code, out, _ = call(capsys, "evaluate", "run", *place, "--json")
    assert {(row["precision"], row["bytes_stored"]) for row in json.loads(out)["rows"]} == {
        ("float32", count_bytes(load_model(str(Path(finished.run, "model")))))
    }


def test_a_checkpoint_is_exported_without_what_training_goes_on_with(finished: TrainJob, tmp_path: Path) -> None:
    newest = sorted(Path(finished.run, "checkpoints").iterdir())[-1]
    assert (newest / "optimizer.safetensors").exists()
    told = export_model(str(newest), str(tmp_path / "store"), "seed", str(tmp_path / "out"))
    assert sorted(told["files"]) == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert not {"optimizer.safetensors", "state.json", "manifest.json"} & set(told["files"])
    assert load_model(str(tmp_path / "out")).config.vocab_size > 1


def test_wrong_exports(capsys: pytest.CaptureFixture[str], finished: TrainJob, tmp_path: Path) -> None:
    full, new, store = str(Path(finished.run, "model")), str(tmp_path / "new"), str(tmp_path / "store")
    small = str(tmp_path / "small")
    export_model("run", store, "int8", small)
    for arguments, problem in (
        (["run", "--format", "tflite", "-o", new], "--format: 'tflite' is none of seed, unrolled, int8"),
        (["run", "--format", "seed", "-o", full], f"--out: {full} is not empty; name a new folder"),
        (["run", "--format", "seed", "-o", new, "--depth", "2"], "--depth: seed holds every depth; leave it out"),
        (["run", "--format", "unrolled", "-o", new, "--depth", "1"], "depth: depth 1 is shallower than the seed"),
        (["nosuch", "--format", "seed", "-o", new], "nosuch: is no finished run and no model folder"),
        ([small, "--format", "int8", "-o", new], f"{small}: has weights of one byte already"),
    ):
        code, out, err = call(capsys, "export", *arguments, "--store", store)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert err.startswith(problem)
        assert not Path(new).exists()
