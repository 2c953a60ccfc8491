"""Exports: stock models that equal a depth, and weights of one byte that are worth what they say."""

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from foldray import FoldPlan, UserError, fold, load_model, unroll
from foldray.folding.plan import Private
from foldray.models.count_model import count_bytes
from foldray.models.families import FAMILIES, transformers_class
from foldray.models.int8 import from_int8, is_quantised, to_int8
from foldray.models.save_load import save_model
from foldray.stages.export import export_model
from foldray.storage.layout import INT8_FILE, PRIVATE_FILE, STOCK_FILE
from foldray.training.checkpoint import TRAINING_FILES, read_checkpoint
from foldray.training.context import WorkerContext
from foldray.training.job import TrainJob
from foldray.training.launch import describe_run
from foldray.training.loop import train_model
from foldray.training.run_folder import whole_checkpoints
from tests.support.commands import call
from tests.support.tiny import CONFIGS, TOKENIZER, crossed, inputs_for, noise, run, tiny_model
from tests.support.training import job_for, with_fields

pytest_plugins = ["tests.support.finished_run"]

USUAL = ("parakeet", "wav2vec2-stable", "whisper")


def folded(name: str, folder: Path, private: str = "none") -> Any:
    """A fold in a folder: neither private parts nor biases at zero, generation with a setting of its own."""
    model = tiny_model(name, num_layers=2)
    normed = any(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules())
    parts = Private(norms=True, statistics=normed, lora_rank=2, film=True) if private == "all" else Private()
    fold(model, FoldPlan(num_layers=2, depths=(2, 4), private=parts))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name_of, buffer in model.named_buffers():
            if "private" in name_of and "running" in name_of:
                buffer.add_(0.1 * torch.rand_like(buffer))
    if hasattr(model, "generation_config"):
        model.generation_config.no_repeat_ngram_size = 3
    save_model(model.eval(), folder, TOKENIZER)
    return model


def stock_model(name: str, folder: str | Path) -> Any:
    """What stock transformers opens."""
    model = transformers_class(FAMILIES[CONFIGS[name][0]].model)
    return model.from_pretrained(folder).eval()


@pytest.mark.main
@pytest.mark.parametrize(("name", "private"), crossed({"none": "none", "all": "all"}, "all"))
def test_each_export_says_what_the_fold_says(name: str, private: str, tmp_path: Path) -> None:
    model = folded(name, tmp_path / "fold", private)
    inputs = inputs_for(model, [noise(1.0), noise(0.6, 1)])
    with torch.no_grad():
        shallow, deep = run(model, inputs).unflatten(0, (2, -1))

        export_model(str(tmp_path / "fold"), ".", "seed", str(tmp_path / "seed"))
        assert torch.equal(run(load_model(str(tmp_path / "seed")), inputs).unflatten(0, (2, -1))[1], deep)
        assert torch.equal(run(stock_model(name, tmp_path / "seed"), inputs), shallow)

        for depth, expected in ((None, deep), (2, shallow)):
            place = tmp_path / f"unrolled-{depth}"
            told = export_model(str(tmp_path / "fold"), ".", "unrolled", str(place), depth)
            assert told["depths"] == [depth or 4]
            stock = stock_model(name, place)
            assert not any("private" in key for key in stock.state_dict())
            assert torch.equal(run(stock, inputs), expected)

        told = export_model(str(tmp_path / "fold"), ".", "int8", str(tmp_path / "int8"))
        assert (told["depths"], set(told["files"]) & {STOCK_FILE, PRIVATE_FILE, INT8_FILE}) == ([2, 4], {INT8_FILE})
        stored = load_file(tmp_path / "int8" / INT8_FILE)
        assert sum(tensor.numel() * tensor.element_size() for tensor in stored.values()) == count_bytes(model, "int8")
        small = load_model(str(tmp_path / "int8"))
        for key, tensor in from_int8(to_int8(model.state_dict())).items():
            assert torch.equal(small.state_dict()[key], tensor), key
        if hasattr(model, "generation_config"):
            assert small.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()
        for kind in ("unrolled", "seed"):  # of what is int8, in float32 again
            export_model(str(tmp_path / "int8"), ".", kind, str(tmp_path / f"again-{kind}"))
        first, last = run(small, inputs).unflatten(0, (2, -1))
        assert torch.equal(run(stock_model(name, tmp_path / "again-unrolled"), inputs), last)
        assert torch.equal(run(stock_model(name, tmp_path / "again-seed"), inputs), first)
        assert torch.equal(run(unroll(small, 4), inputs), last)


ONE_EACH = {family: name for name, (family, _) in reversed(CONFIGS.items())}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.main if name in USUAL else pytest.mark.soak) for name in ONE_EACH.values()],
)
def test_onnx_says_what_the_depth_says(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Other numbers and lengths of utterances than it was made with, one alone among them."""
    model = folded(name, tmp_path / "fold", "all")
    if not FAMILIES[CONFIGS[name][0]].ctc:
        with pytest.raises(
            UserError, match=f"onnx exports CTC logits, which {CONFIGS[name][0]} does not have; use .*unrolled"
        ):
            export_model(str(tmp_path / "fold"), ".", "onnx", str(tmp_path / "onnx"))
        return
    for depth in (2, 4) if name == "parakeet" else (2,):  # the exporter takes seconds a block
        told = export_model(str(tmp_path / "fold"), ".", "onnx", str(tmp_path / f"onnx-{depth}"), depth)
        assert told["depths"] == [depth]
        assert {"model.onnx", "config.json", "export.json"} < set(told["files"])
        assert not any(file.endswith(".safetensors") for file in told["files"])
        session = onnxruntime.InferenceSession(tmp_path / f"onnx-{depth}" / "model.onnx")
        for waveforms in ([noise(1.0)], [noise(1.9), noise(0.6, 1), noise(1.2, 2)]):
            inputs = inputs_for(model, waveforms)
            with torch.no_grad():
                output = unroll(model, depth)(**inputs)
            logits_BTV = output.ctc_logits if "ctc_logits" in output else output.logits
            given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
            (said_BTV,) = session.run(["logits"], given)
            torch.testing.assert_close(torch.from_numpy(said_BTV), logits_BTV, rtol=1e-4, atol=1e-5)
    assert "".join(capfd.readouterr()) == ""


def test_onnx_without_what_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnx needs the extra 'onnx': pip install 'foldray\[onnx\]'"):
        export_model(str(tmp_path), ".", "onnx", str(tmp_path / "onnx"))


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


@pytest.mark.main
def test_an_int8_model_is_scored_and_its_rows_tell_its_bytes(
    capsys: pytest.CaptureFixture[str], finished: TrainJob, tmp_path: Path
) -> None:
    place = ("--store", str(tmp_path / "store"))
    code, out, err = call(capsys, "export", "run", "--format", "int8", "-o", str(tmp_path / "small"), *place, "--json")
    assert code == 0, err
    assert json.loads(out)["bytes"] == sum(file.stat().st_size for file in (tmp_path / "small").iterdir())
    corpus = Path(finished.corpus).name
    code, out, err = call(capsys, "evaluate", str(tmp_path / "small"), "--data", corpus, *place, "--json")
    assert code == 0, err
    weights = load_file(tmp_path / "small" / INT8_FILE)
    for row in json.loads(out)["rows"]:
        assert (row["precision"], row["step"], row["seed"], row["recipe"]) == ("int8", 3, 0, finished.spec.name)
        assert row["train_seconds"] > 0
        assert row["bytes_stored"] == sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    told = json.loads(call(capsys, "evaluate", str(tmp_path / "small"), *place, "--json")[1])
    assert {row["corpus"] for row in told["rows"]} == {corpus}, "by default that of its run"
    elsewhere = str(tmp_path / "another")
    code, _, err = call(capsys, "evaluate", str(tmp_path / "small"), "--store", elsewhere)
    assert code == 2, err
    assert err.startswith("--data: set it to the corpus to score")
    told = export_model(str(tmp_path / "small"), str(tmp_path / "store"), "seed", str(tmp_path / "again"))
    assert json.loads(Path(told["model"], "export.json").read_text())["run_id"] == "run", "an export of an export"
    code, out, _ = call(capsys, "evaluate", "run", *place, "--json")
    assert {(row["precision"], row["bytes_stored"]) for row in json.loads(out)["rows"]} == {
        ("float32", count_bytes(load_model(str(Path(finished.run, "model")))))
    }


def test_a_checkpoint_is_exported_as_the_average_that_it_is(prepared: tuple[str, Any], tmp_path: Path) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path / "runs", steps=3), "optim.ema=0.5")
    trained = train_model(job, WorkerContext())
    Path(job.run, "spec.json").write_text(job.spec.model_dump_json())
    Path(job.run, "run.json").write_text(json.dumps(describe_run(job.spec, job.corpus)))
    newest = whole_checkpoints(job.run)[-1].uri
    assert {"optimizer.safetensors", "trained.safetensors"} <= {file.name for file in Path(newest).iterdir()}
    told = export_model(newest, str(tmp_path), "seed", str(tmp_path / "out"))
    assert not set(told["files"]) & {*TRAINING_FILES, "state.json", "manifest.json"}
    averaged = read_checkpoint(newest).averaged
    exported = load_model(str(tmp_path / "out")).state_dict()
    assert set(averaged) <= set(exported)
    for key, tensor in averaged.items():
        assert torch.equal(exported[key], tensor), key
    assert any(not torch.equal(exported[key], tensor) for key, tensor in trained.model.state_dict().items())


@pytest.mark.usefixtures("finished")
def test_an_export_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    place = ("run", str(tmp_path / "store"), "int8", str(tmp_path / "out"))
    whole = export_model(*place)
    Path(whole["model"], "fold.json").unlink()
    Path(whole["model"], INT8_FILE).write_bytes(b"half")
    assert export_model(*place) == whole
    assert load_model(whole["model"]).config.vocab_size > 1


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("damage", ["half", "unscaled"])
def test_a_damaged_int8_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: str) -> None:
    small = export_model("run", str(tmp_path / "store"), "int8", str(tmp_path / "small"))["model"]
    file = Path(small, INT8_FILE)
    if damage == "half":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        tensors = load_file(file)
        del tensors[next(name for name in tensors if name.endswith(".scale"))]
        save_file(tensors, file)
    code, out, err = call(capsys, "export", small, "--format", "unrolled", "-o", str(tmp_path / "new"))
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith(f"{file}: is damaged (")


def test_wrong_exports(capsys: pytest.CaptureFixture[str], finished: TrainJob, tmp_path: Path) -> None:
    full, new, store = str(Path(finished.run, "model")), str(tmp_path / "new"), str(tmp_path / "store")
    small, file = str(tmp_path / "small"), str(Path(full, "fold.json"))
    before = {each: each.read_bytes() for each in Path(full).iterdir()}
    export_model("run", store, "int8", small)
    for arguments, problem in (
        (
            ["run", "--format", "tflite", "-o", new],
            "--format: must be one of seed, unrolled, onnx, onnx-asr, sherpa-onnx, int8 (got 'tflite')",
        ),
        (["run", "--format", "seed", "-o", full], f"--out: {full} is not empty; name a new folder"),
        (["run", "--format", "seed", "-o", file], f"--out: {file} is a file; name a new folder"),
        (["run", "--format", "seed", "-o", f"{file}/below"], "--out: "),
        (["run", "--format", "unrolled", "-o", new, "--depth", "0"], "--depth: depth 0 is shallower than the seed"),
        (
            ["run", "--format", "seed", "-o", new, "--depth", "2"],
            "--depth: seed contains every depth; leave --depth out",
        ),
        (["run", "--format", "unrolled", "-o", new, "--depth", "1"], "--depth: depth 1 is shallower than the seed"),
        (["nosuch", "--format", "seed", "-o", new], "nosuch: is neither a finished run nor a model folder"),
        ([small, "--format", "int8", "-o", new], f"{small}: is an int8 export already"),
    ):
        code, out, err = call(capsys, "export", *arguments, "--store", store)
        assert code == 2, err
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert err.startswith(problem)
        assert not Path(new).exists()
    assert {each: each.read_bytes() for each in Path(full).iterdir()} == before


@pytest.mark.usefixtures("finished")
def test_a_finished_export_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its files are among those that the new one would write."""
    out, store = tmp_path / "out", str(tmp_path / "store")
    export_model("run", store, "unrolled", str(out))
    before = {each: each.read_bytes() for each in out.iterdir()}
    monkeypatch.setattr("foldray.stages.export.load_model", lambda _: pytest.fail("a model is loaded"))
    for kind in ("unrolled", "seed", "onnx", "onnx-asr", "int8"):
        with pytest.raises(UserError, match="is not empty; name a new folder"):
            export_model("run", store, kind, str(out))
    assert {each: each.read_bytes() for each in out.iterdir()} == before


def test_a_fold_without_units_is_exported_without_a_tokenizer(tmp_path: Path) -> None:
    save_model(folded("parakeet", tmp_path / "with"), tmp_path / "fold")
    for kind in ("seed", "unrolled", "int8"):
        told = export_model(str(tmp_path / "fold"), ".", kind, str(tmp_path / kind))
        assert "vocab.json" not in told["files"]
        assert len(told["files"]) >= 3
