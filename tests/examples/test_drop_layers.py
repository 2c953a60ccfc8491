"""The example that drops layers: its losses are the validation's, of the checkpoint without those layers."""

import runpy
import sys
from pathlib import Path

import pytest

from foldray.data.manifest import read_manifest
from foldray.folding.plan import FoldPlan
from foldray.models.from_checkpoint import fold_checkpoint
from foldray.models.save_load import save_model
from foldray.training.validation import validate_checkpoint
from tests.support.paths import PROJECT
from tests.support.seq2seq import job_for_whisper

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
