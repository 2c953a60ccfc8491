"""Recordings, folds whose texts vary, and what onnx-asr and sherpa-onnx make of their exports."""

import contextlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foldray import FoldPlan, fold
from foldray.config.corpus import SAMPLE_RATE
from foldray.models.families import FAMILIES
from foldray.models.features import build_extractor, extract_features, whole_frames
from foldray.models.fold import ctc_logits, set_depths
from foldray.models.from_checkpoint import fold_checkpoint
from foldray.models.save_load import save_model
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.models.tokenizer import Tokenizer
from foldray.models.windows import AUDIO_WINDOW
from tests.support.corpora import encode_wav
from tests.support.seq2seq import write_whisper
from tests.support.tiny import CONFIGS, noise, tiny_model


def sweep(seconds: float, seed: int = 0) -> torch.Tensor:
    """A tone that rises and swells, with some noise: no two frames are alike."""
    time_T = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tone_T = torch.sin(2 * torch.pi * (200 + (300 + 90 * seed) * time_T) * time_T) * torch.sin(3 * time_T) ** 2
    return 0.3 * tone_T + 0.1 * noise(seconds, seed)[: len(time_T)]


def recordings(folder: Path, seconds: Sequence[float] = (2.03, 1.41)) -> list[str]:
    """Files in a folder, one for each length; without an offset, which sherpa-onnx subtracts."""
    files = [folder / f"{i}.wav" for i in range(len(seconds))]
    for i, file in enumerate(files):
        samples_T = sweep(seconds[i], i).numpy()
        file.write_bytes(encode_wav(samples_T - samples_T.mean()))
    return [str(file) for file in files]


def save_ctc_fold(name: str, folder: Path, tokenizer: Tokenizer, num_mel_bins: int = 80) -> str:
    """Save a fold 1 -> 2 with random weights, whose best token changes every few frames; returns its folder."""
    model: Any = tiny_model(name, num_layers=1, vocabulary=len(tokenizer), num_mel_bins=num_mel_bins)
    fold(model, FoldPlan(1, (1, 2)))
    set_depths(model, [1])
    head = getattr(model, FAMILIES[CONFIGS[name][0]].ctc_head or "")
    with torch.no_grad():
        torch.nn.init.normal_(head.weight)
        inputs = extract_features(model, build_extractor(model), [whole_frames(model, sweep(2.03).numpy())])
        head.bias.sub_(ctc_logits(model(**inputs)).mean((0, 1)))
    save_model(model.eval(), folder, tokenizer)
    return str(folder)


def save_whisper_fold(folder: Path, *, multilingual: bool, window: str) -> str:
    """Save a fold 1 -> 2 of a random Whisper that says eight letters of 26, then ends; returns its folder."""
    stock = write_whisper(folder / "stock", layers=1, multilingual=multilingual)
    tokenizer = read_stock_tokenizer(str(stock))
    assert tokenizer.special is not None
    model: Any = fold_checkpoint(stock, FoldPlan(1, (1, 2)), decoder=FoldPlan(1, (1, 2)))
    with torch.no_grad():
        tokens, places = model.model.decoder.embed_tokens.weight, model.model.decoder.embed_positions.weight
        tokens[tokenizer.special.end] = ending = tokens[0].clone()
        last = len(tokenizer.special.prompts[""]) + 7
        places[last:] += 300 * ending / ending.norm()
    setattr(model.config, AUDIO_WINDOW, window)
    letters = [
        i for i, token in enumerate(tokenizer.vocabulary) if len(token) == 1 and token.isascii() and token.isalpha()
    ]
    kept = {*letters, tokenizer.special.end, *(ids[1] for code, ids in tokenizer.special.prompts.items() if code)}
    model.generation_config.suppress_tokens = [i for i in range(len(tokenizer)) if i not in kept]
    model.generation_config.begin_suppress_tokens = [tokenizer.special.end]
    save_model(model, folder / "fold", tokenizer)
    return str(folder / "fold")


def run_readme(folder: Path, recording: str) -> str:
    """What the lines of an export's README print for a recording."""
    shutil.copy(recording, folder / "hello.wav")
    lines = (folder / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(lines, {})
    return printed.getvalue().removesuffix("\n")
