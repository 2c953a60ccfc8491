"""Export one depth to ONNX with torch's exporter."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import UserError
from foldray.models.families import family_of
from foldray.models.features import build_extractor, extract_features, whole_frames
from foldray.models.folded_model import FoldedModel


def write_onnx(stock: FoldedModel, file: Path) -> None:
    """Export the CTC logits (B, T', V) of a stock model to ONNX, for any number of utterances of any length.

    Inputs have the stock names: audio or features, and the mask if the stock extractor returns one. An utterance's
    frames precede those of its padding. Raises UserError for a model without CTC.
    """
    family = family_of(stock)
    if not family.ctc:
        raise UserError("--format", f"onnx exports CTC logits, which {family.name} does not have; use unrolled")
    # Two utterances of two lengths; otherwise torch treats sizes as constants.
    noises = [0.1 * np.random.default_rng(0).standard_normal(length) for length in (SAMPLE_RATE, SAMPLE_RATE * 2 // 3)]
    waveforms = [whole_frames(stock, noise.astype(np.float32)) for noise in noises]
    inputs = extract_features(stock, build_extractor(stock), waveforms)
    sizes = dict.fromkeys((0, 1), torch.export.Dim.AUTO)
    before = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "torch.export"))}
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in before:
            logger.setLevel(logging.ERROR)
        try:
            exported = torch.export.export(
                _CtcLogits(stock, list(inputs)),
                tuple(inputs.values()),
                dynamic_shapes=((sizes,) * len(inputs),),
                strict=False,
            )
            program = torch.onnx.export(
                exported, dynamo=True, input_names=list(inputs), output_names=["logits"], verbose=False
            )
            assert program is not None
            program.save(str(file))
        finally:
            for logger, level in before.items():
                logger.setLevel(level)


class _CtcLogits(torch.nn.Module):
    """A stock model as a function of its audio input and mask, by place."""

    def __init__(self, stock: FoldedModel, names: list[str]) -> None:
        super().__init__()
        # Trainable parameters would add operations of their gradients, which ONNX does not have.
        self.stock = stock.requires_grad_(False).eval()
        self._names = names

    def forward(self, *inputs: torch.Tensor) -> Any:
        output = self.stock(**dict(zip(self._names, inputs, strict=True)))
        return output.ctc_logits if "ctc_logits" in output else output.logits
