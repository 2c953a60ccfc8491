"""The example that drops layers: its losses are the validation's, of the checkpoint without those layers."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from foldray.config.recipes import load_recipe
from foldray.data.manifest import Manifest, read_manifest
from foldray.errors import UserError
from foldray.folding.plan import FoldPlan
from foldray.models.from_checkpoint import fold_checkpoint
from foldray.models.save_load import save_model
from foldray.models.stock import write_random_checkpoint
from foldray.training.validation import validate_checkpoint
from tests.support.paths import PROJECT
from tests.support.seq2seq import job_for_whisper
from tests.support.tiny import tiny_spec

EXAMPLE = PROJECT / "examples" / "drop_layers.py"


def test_losses_are_those_of_the_checkpoint_without_the_layers(
    spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_for_whisper(spoken, tmp_path)
    file = tmp_path / "spec.json"
    file.write_text(job.spec.model_dump_json())
    overrides = [
        f"storage.root={tmp_path / 'store'}",
        "model.window=full",
        "--keep",
        "2",
        "--keep-decoder",
        "2",
        "--utterances",
        "100000",
    ]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(file), *overrides])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines() if "prepared" not in line]
    found = {key: value for key, value in lines if key in ("all", "layers", "decoder_layers", "left:")}
    without = {
        key: {int(number): value for number, value in (pair.split(": ") for pair in found[key][8:].split(", "))}
        for key in ("layers", "decoder_layers")
    }

    def loss_of(layers: list[int], decoder: list[int]) -> str:
        plans = FoldPlan(len(layers), (len(layers),)), FoldPlan(len(decoder), (len(decoder),))
        model = fold_checkpoint(job.init, plans[0], decoder=plans[1], layers=layers, decoder_layers=decoder)
        folder = tmp_path / f"cut-{layers}-{decoder}"
        save_model(model, str(folder), read_manifest(job.corpus).tokenizer)
        record = validate_checkpoint(job.run, 1, str(folder), job.corpus, job.spec.batch.max_duration)
        return f"{record['valid_attention'][str(len(layers))]:.2f}"

    everything = [0, 1, 2]
    others = {0: [1, 2], 1: [0, 2], 2: [0, 1]}
    assert found["all"] == f"layers: {loss_of(everything, everything)} nats per label"
    assert without["layers"] == {layer: loss_of(left, everything) for layer, left in others.items()}
    encoder = others[min(without["layers"], key=lambda layer: float(without["layers"][layer]))]
    assert without["decoder_layers"] == {layer: loss_of(encoder, left) for layer, left in others.items()}
    decoder = others[min(without["decoder_layers"], key=lambda layer: float(without["decoder_layers"][layer]))]
    assert found["left:"] == f"{loss_of(encoder, decoder)} 'model.layers={encoder}' 'model.decoder_layers={decoder}'"


@pytest.mark.parametrize(("name", "candidates"), [("wavlm", "12"), ("conformer", "012")])
def test_ctc_losses_are_those_of_validation_and_a_first_layer_that_others_need_stays(
    name: str, candidates: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    example = runpy.run_path(str(EXAMPLE))
    spec = tiny_spec(name).model_copy(update={"checkpoint": str(tmp_path / "whole")})
    write_random_checkpoint(tiny_spec(name), 3, prepared[1].tokenizer, 0, tmp_path / "whole")
    losses = example["Losses"](load_recipe("an4").model_copy(update={"model": spec}), *prepared, 100_000)
    lines = list(example["drop_layers"](losses, {"layers": 1, "decoder_layers": None}))
    assert "".join(re.findall(r"(\d): ", lines[1])) == candidates
    assert len(lines) == 4
    found = re.fullmatch(r"left: ([\d.]+) 'model\.layers=\[(\d)\]'", lines[-1])
    assert found
    model = fold_checkpoint(tmp_path / "whole", FoldPlan(1, (1,)), layers=[int(found[2])])
    save_model(model, tmp_path / "cut", prepared[1].tokenizer)
    record = validate_checkpoint(str(tmp_path / "run"), 1, str(tmp_path / "cut"), prepared[0], 16)
    assert found[1] == f"{record['valid_ctc']['1']:.2f}"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"layers": 0}, "--keep: 0 must be 1 to 3"),
        ({"layers": 4}, "--keep: 4 must be 1 to 3"),
        ({"decoder_layers": 1}, "--keep-decoder: the model has no decoder that folds"),
    ],
)
def test_numbers_of_layers_are_checked_first(
    keep: dict[str, int], message: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    example = runpy.run_path(str(EXAMPLE))
    spec = tiny_spec("hubert").model_copy(update={"checkpoint": str(tmp_path)})
    write_random_checkpoint(tiny_spec("hubert"), 3, prepared[1].tokenizer, 0, tmp_path)
    losses = example["Losses"](load_recipe("an4").model_copy(update={"model": spec}), *prepared, 5)
    with pytest.raises(UserError, match=f"^{message}"):
        next(iter(example["drop_layers"](losses, keep)))
