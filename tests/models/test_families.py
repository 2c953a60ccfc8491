"""Families of models: one file each, found by its name, the only product file that a new family takes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import foldray
from foldray.config.model import FAMILY_NAMES
from foldray.models.families import FAMILIES

PACKAGE = Path(foldray.__file__).parent


def test_names_in_the_configuration_are_the_families() -> None:
    assert set(FAMILY_NAMES) == set(FAMILIES)


def test_nothing_outside_the_families_branches_on_one() -> None:
    for file in PACKAGE.rglob("*.py"):
        if "families" not in file.parts:
            text = file.read_text()
            assert not re.search(r"family(_of\(.*\))?\.(kind|features)\b|family\.name [!=]= ", text), file
            assert not re.search(rf"[!=]= \"({'|'.join(FAMILIES)})\"", text), file


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


def test_a_new_family_is_one_new_file(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "foldray", ignore=shutil.ignore_patterns("__pycache__"))
    new = tmp_path / "foldray" / "models" / "families" / "made_up.py"
    assert not new.exists()
    new.write_text(NEW_FAMILY)
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "foldray" / "__init__.py"), done.stderr
