"""Models and audio for tests of the server."""

import io
from pathlib import Path

import numpy as np
import soundfile
import torch

from foldray import FoldPlan
from foldray.models.fold import ctc_logits
from foldray.models.save_load import save_model
from tests.support.tiny import TOKENIZER, folded, inputs_for, noise

DEPTHS = (2, 3, 4)


def wav(seconds: float, seed: int = 0, rate: int = 16_000) -> bytes:
    """Noise as a WAV file; the text of a model with random weights follows the noise."""
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def silence(seconds: float) -> bytes:
    """Silence as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(seconds * 16_000)), 16_000, format="WAV")
    return file.getvalue()


def save_talkative(folder: Path) -> str:
    """Save a tiny folded model whose texts are long and differ between depths and recordings."""
    model = folded("conformer", FoldPlan(2, DEPTHS, order="cycle")).eval()
    with torch.no_grad():
        model.ctc_head.weight.mul_(20)
        given = inputs_for(model, [noise(20.0)])
        logits_PTV = ctc_logits(model(input_features=given["input_features"]))
        model.ctc_head.bias.sub_(logits_PTV.mean((0, 1)))  # no token wins in all frames
    save_model(model, folder, TOKENIZER)
    return str(folder)
