"""Families of models: one file each, found by its name, the only product file that a new family takes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import foldray
from foldray import FoldPlan, fold, fold_checkpoint
from foldray.config.model import FAMILY_NAMES, ModelSpec, PlannedModel
from foldray.errors import UserError
from foldray.models.families import FAMILIES, REFUSED, transformers_class
from foldray.models.stock_config import check_model, checkpoint_config, stock_config, with_vocab_size
from tests.support.tiny import tiny_spec

PACKAGE = Path(foldray.__file__).parent


def test_names_in_the_configuration_are_the_families() -> None:
    assert set(FAMILY_NAMES) == set(FAMILIES)


def test_nothing_outside_the_families_branches_on_one() -> None:
    for file in PACKAGE.rglob("*.py"):
        if "families" not in file.parts:
            text = file.read_text()
            assert not re.search(r"family(_of\(.*\))?\.(kind|features)\b|family\.name [!=]= ", text), file
            assert not re.search(rf"[!=]= \"({'|'.join(FAMILIES)})\"", text), file


def test_fields_reach_nested_configurations(tmp_path: Path) -> None:
    config = stock_config(tiny_spec("canary"), 2, 9)
    assert (config.vocab_size, config.decoder_config.vocab_size, config.decoder_config.hidden_size) == (10, 10, 32)
    assert (config.encoder_config.num_hidden_layers, config.encoder_config.hidden_size) == (2, 32)
    with_vocab_size(stock_config(tiny_spec("omniasr-ctc"), 3, 9), 20).save_pretrained(tmp_path)
    again = checkpoint_config(ModelSpec(family="omniasr-ctc", config={"hidden_dropout": 0.3}), str(tmp_path))
    assert (again.audio_config.hidden_dropout, again.audio_config.num_hidden_layers, again.vocab_size) == (0.3, 3, 20)


@pytest.mark.parametrize("name", ["canary", "cohere-asr", "speech-to-text"])
def test_what_folds_in_python_only_is_not_trained(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"^model\.family: {name} can't be trained, since its .*; fold \w+ with fold_ch"
    ):
        check_model(PlannedModel(tiny_spec(name), FoldPlan(2, (2, 4))))


@pytest.mark.parametrize("name", REFUSED)
def test_every_refused_class_exists_and_is_refused_with_its_reason(name: str) -> None:
    stock = transformers_class(name)
    with pytest.raises(UserError) as failed:
        fold(object.__new__(stock), FoldPlan(2, (2, 4)))  # its weights are not made
    assert str(failed.value).startswith(f"{name}: can't be folded: {REFUSED[name]}; families: ")


def test_a_refused_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = transformers_class("GraniteSpeech5CTCConfig")(architectures=["GraniteSpeech5ForCTC"])
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a granite_speech5_ctc, which foldray does not fold: its first two blocks"):
        fold_checkpoint(tmp_path, FoldPlan(2, (2, 4)))


def test_every_recogniser_of_transformers_folds_or_is_refused_by_name() -> None:
    from transformers.models.auto import modeling_auto

    listed = [
        name
        for task in ("CTC", "SPEECH_SEQ_2_SEQ", "RNNT", "TDT")
        for name in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values()
    ]
    assert "LasrForCTC" in listed
    known = {*REFUSED, *(family.model for family in FAMILIES.values()), *NO_RECOGNISERS}
    assert not {*listed} - known


NO_RECOGNISERS = (
    "DiaForConditionalGeneration",
    "Pop2PianoForConditionalGeneration",
    "VibeVoiceForConditionalGeneration",
)
"""Speech and music synthesis, which transformers lists among the same."""

NEW_FAMILY = """
from foldray.models.families._waveform import wav2vec2_like

FAMILY = wav2vec2_like("made-up", "UniSpeech", "unispeech")
"""
USE = """
import torch
import foldray
from foldray.config.model import ModelSpec
from foldray.models.families import FAMILIES
from foldray.models.features import build_extractor, extract_features, output_frames
from foldray.models.stock_config import stock_config

shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": [16, 16, 16],
         "conv_kernel": [10, 8, 4], "conv_stride": [5, 8, 8], "num_feat_extract_layers": 3,
         "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
spec = ModelSpec(family="made-up", config=shape)
model = FAMILIES["made-up"].model_class(stock_config(spec, 2, 9)).eval()
folded = foldray.fold(model, foldray.FoldPlan(2, (2, 4)))
audio = torch.randn(16000).numpy()
logits = folded(**extract_features(folded, build_extractor(folded), [audio])).logits
assert logits.shape == (2, output_frames(folded, [16000])[0], 9), logits.shape
foldray.save_model(folded, "fold")
again = foldray.load_model("fold")
assert torch.equal(again(**extract_features(again, build_extractor(again), [audio])).logits, logits)
print(foldray.__file__)
"""


@pytest.mark.main
def test_a_new_family_is_one_new_file(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "foldray", ignore=shutil.ignore_patterns("__pycache__", "unispeech.py"))
    new = tmp_path / "foldray" / "models" / "families" / "made_up.py"
    assert not new.exists()
    new.write_text(NEW_FAMILY)
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "foldray" / "__init__.py"), done.stderr
