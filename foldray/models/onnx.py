"""Export one depth to ONNX with torch's exporter."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import UserError
from foldray.models.families import family_of
from foldray.models.features import build_extractor, extract_features, whole_frames
from foldray.models.fold import ctc_logits
from foldray.models.folded_model import FoldedModel

FREE = torch.export.Dim.AUTO
"""A size that may differ between calls."""


def write_onnx(stock: FoldedModel, file: Path) -> None:
    """Export the CTC logits (B, T', V) of a stock model to ONNX, for any number of utterances of any length.

    Inputs have the stock names: audio or features, and the mask if the stock extractor returns one. An utterance's
    frames precede those of its padding. Raises UserError for a model without CTC.
    """
    family = family_of(stock)
    if not family.ctc:
        fix = "use onnx-asr, sherpa-onnx or unrolled" if family.in_runtimes else "use unrolled"
        raise UserError("--format", f"onnx exports CTC logits, which {family.name} does not have; {fix}")
    # Two utterances of two lengths; otherwise torch treats sizes as constants.
    noises = [0.1 * np.random.default_rng(0).standard_normal(length) for length in (SAMPLE_RATE, SAMPLE_RATE * 2 // 3)]
    waveforms = [whole_frames(stock, noise.astype(np.float32)) for noise in noises]
    inputs = extract_features(stock, build_extractor(stock), waveforms)
    sizes = [_free_sizes(tensor) for tensor in inputs.values()]
    save_graph(_CtcLogits(stock, list(inputs)), inputs, sizes, ["logits"], file)


def save_graph(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    sizes: Sequence[dict[int, Any]],
    outputs: Sequence[str],
    file: Path,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write a module as an ONNX graph.

    Args:
        module: Takes the inputs by place, and returns a tensor or a tuple of them.
        inputs: An example of each input, by its name in the graph.
        sizes: For each input the axes whose size is `FREE`.
        outputs: Names of the outputs.
        file: The new file.
        metadata: Properties that a runtime reads from the file.
    """
    # Trainable parameters would add operations of their gradients, which ONNX does not have.
    module.requires_grad_(False).eval()
    with torch.no_grad(), _quiet():
        exported = torch.export.export(
            _ByPlace(module), tuple(inputs.values()), dynamic_shapes=(tuple(sizes),), strict=False
        )
        program = torch.onnx.export(
            exported, dynamo=True, input_names=list(inputs), output_names=list(outputs), verbose=False
        )
        assert program is not None
        program.model.metadata_props.update({name: str(value) for name, value in (metadata or {}).items()})
        program.save(str(file))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints, warns and logs."""
    before = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "torch.export"))}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in before:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in before.items():
                logger.setLevel(level)


def _free_sizes(tensor: torch.Tensor) -> dict[int, Any]:
    """The axes of utterances and of time; before time there may be one of a single channel."""
    time = 2 if tensor.ndim == 3 and tensor.shape[1] == 1 else 1
    return dict.fromkeys((0, time), FREE)


class _ByPlace(torch.nn.Module):
    """A module with all inputs in one list, so that their sizes are one list too."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.module(*inputs)


class _CtcLogits(torch.nn.Module):
    """A stock model as a function of its audio input and mask, by place."""

    def __init__(self, stock: FoldedModel, names: list[str]) -> None:
        super().__init__()
        self.stock = stock
        self._names = names

    def forward(self, *inputs: torch.Tensor) -> Any:
        return ctc_logits(self.stock(**dict(zip(self._names, inputs, strict=True))))
