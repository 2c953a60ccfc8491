"""When a decoder's tokens are spoken, from its cross-attention.

A pass over the finished text gives every token's attention over the encoder's frames. Half of the heads follow the
audio from left to right; the average of the upper layers' heads is aligned by dynamic time warping (the method of
arXiv 2212.04356's code and of arXiv 2303.00747, section 3).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foldray.config.corpus import SAMPLE_RATE
from foldray.models.families import family_of
from foldray.models.folded_model import FoldedModel
from foldray.transcription.chunks import LEVEL_SAMPLES, PAUSE_DECIBEL, SMOOTHED, Samples, decibels
from foldray.transcription.words import TimedToken

TimedTokens = list[TimedToken]
SMOOTHED_FRAMES = 7


@torch.no_grad()
def time_tokens(
    model: FoldedModel,
    inputs: dict[str, Tensor],
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    seconds: Sequence[float],
    frames: Sequence[int],
) -> list[TimedTokens]:
    """Time the tokens of a batch.

    Args:
        model: A model with a stock decoder, set to one depth.
        inputs: What the encoder takes, B clips.
        prompts: Ids before the text of each clip, all of one length.
        texts: Ids of the text of each clip, without the end token.
        seconds: Length of each clip.
        frames: Valid encoder frames of each clip.
    """
    length = len(prompts[0]) + max(map(len, texts))
    ids_BU = torch.zeros((len(texts), length), dtype=torch.long, device=model.device)
    for b, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids_BU[b, : len(prompt) + len(text)] = torch.tensor([*prompt, *text])
    with _attention(model) as layers:
        logits_BUV = model(**inputs, decoder_input_ids=ids_BU).logits.float()
    upper = layers[len(layers) // 2 :]
    probabilities_BU = logits_BUV[:, :-1].softmax(-1).gather(-1, ids_BU[:, 1:, None])[..., 0].cpu().numpy()
    timed = []
    for b, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        first, count = len(prompt), len(text)
        # A token's attention is that of the position that predicts it.
        rows = slice(first - 1, first - 1 + count + 1)
        weights_HUT = torch.cat([layer[b, :, rows, : frames[b]] for layer in upper]).float().cpu().numpy()
        starts = _starts(weights_HUT) * (seconds[b] / frames[b])
        probabilities = probabilities_BU[b, first - 1 : first - 1 + count]
        timed.append(
            [
                TimedToken(text[i], starts[i], max(starts[i], starts[i + 1]), float(probabilities[i]))
                for i in range(count)
            ]
        )
    return timed


def without_silence(tokens: Sequence[TimedToken], samples_T: Samples) -> TimedTokens:
    """Cut silence off the tokens of a clip.

    The warping knows order only: each token lasts until the next one begins, over any pause. Of several parts between
    pauses a token keeps the longest; one in which nothing is heard stays as it is.

    Args:
        tokens: Timed tokens.
        samples_T: The clip.

    Example:
        >>> without_silence([TimedToken(7, 0.0, 3.0, 1.0)], one_second_of_speech_and_two_of_silence)[0].end
        1.0
    """
    seconds = LEVEL_SAMPLES / SAMPLE_RATE
    levels = decibels(samples_T)
    heard = np.flatnonzero(levels > np.percentile(levels, 95) - PAUSE_DECIBEL) if len(levels) else levels
    cut = []
    for token in tokens:
        inside = heard[(heard >= int(token.start / seconds)) & (heard * seconds < token.end)]
        if len(inside):
            parts = np.split(inside, np.flatnonzero(np.diff(inside) > SMOOTHED) + 1)
            longest = max(parts, key=len)
            start, end = longest[0] * seconds, (longest[-1] + 1) * seconds
            token = replace(token, start=max(token.start, start), end=min(token.end, end))
        cut.append(token)
    return cut


@contextmanager
def _attention(model: FoldedModel) -> Iterator[list[Tensor]]:
    """Collect the cross-attention (B, H, U, T) of every decoder block that runs, in order."""
    collected: list[Tensor] = []
    decoder = model.get_submodule(family_of(model).decoder or "")
    blocks = [module for name, module in decoder.named_modules() if name.rpartition(".")[2] == "encoder_attn"]
    hooks = [block.register_forward_hook(lambda _m, _a, output: collected.append(output[1])) for block in blocks]
    configs: list[Any] = [block.config for block in blocks]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"  # the only one that returns its weights
        yield collected
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()


def _starts(weights_HUT: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Frame at which each of U tokens starts, from attention weights of H heads."""
    spread = weights_HUT.std(axis=1, keepdims=True)
    scores_HUT = (weights_HUT - weights_HUT.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-6)
    half = SMOOTHED_FRAMES // 2
    padded = np.pad(scores_HUT, ((0, 0), (0, 0), (half, half)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED_FRAMES, axis=-1)
    return _warp(-np.median(windows, axis=-1).mean(axis=0))


def _warp(cost_UT: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """First frame of each row on the cheapest path from the first cell to the last (dynamic time warping)."""
    rows, columns = cost_UT.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        best = np.minimum(np.minimum(total[i - 1, j - 1], total[i - 1, j]), total[i, j - 1])
        total[i, j] = cost_UT[i - 1, j - 1] + best
    starts = np.zeros(rows)
    i, j = rows, columns
    while i > 0 and j > 0:
        starts[i - 1] = j - 1
        i, j = min(((i - 1, j - 1), (i, j - 1), (i - 1, j)), key=lambda cell: total[cell])
    return starts
