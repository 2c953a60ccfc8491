"""Feature extractors, and the shapes of a model's inputs and outputs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import UserError, one_line
from foldray.models.families import Family, family_of, transformers_class
from foldray.models.folded_model import FoldedModel
from foldray.models.windows import takes_audio_window


def output_frames(model: nn.Module | FoldedModel, num_samples: Sequence[int]) -> list[int]:
    """Count the valid output frames of utterances with so many samples (16 kHz), as the model's own masks do."""
    stock: Any = getattr(model, "module", model)
    frames: Tensor = family_of(stock).frames(stock, torch.tensor(list(num_samples)))
    return [int(count) for count in frames]


def whole_frames(model: FoldedModel, waveform_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cut a remainder at the end that the model would keep or drop depending on the rest of the batch."""
    return waveform_T[: family_of(model).whole_samples(model, len(waveform_T))]


def feature_windows(model: FoldedModel, inputs: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield the index and the valid log-mel windows (T, F) of each utterance, as views; nothing for waveforms.

    Stacked windows are split into the single windows they consist of.
    """
    family = family_of(model)
    if family.mel_bins is None:
        return
    bins = family.mel_bins(model.config)
    for i, mask_T in enumerate(inputs[family.mask]):
        yield i, inputs[family.inputs][i, : int(mask_T.sum())].view(-1, bins)


def keep_extractor(model: FoldedModel, family: Family, source: str) -> None:
    """Attach the feature extractor saved with a checkpoint (a folder or hub name) to the model, if there is one.

    Checkpoints of one family differ in it: WavLM base reads audio as it is, WavLM large normalises it.

    Raises:
        UserError: The extractor is damaged, or expects another sample rate.
    """
    file = Path(source, "preprocessor_config.json")
    try:
        if file.exists():
            _check_options(storage.read_json(str(file)))
        extractor = transformers_class(family.extractor).from_pretrained(source)
        if extractor.sampling_rate == SAMPLE_RATE:  # some values are used, and refused, with the first audio only
            extract_features(model, extractor, [np.zeros(SAMPLE_RATE // part, np.float32) for part in (1, 2)])
    except OSError as error:
        if not file.exists():
            return
        raise UserError(str(file), f"can't be read ({one_line(error)})") from None
    except UserError:
        raise
    except Exception as error:  # each extractor raises its own for a value that it can't use
        raise UserError(str(file), f"is not the feature extractor of {family.name} ({one_line(error)})") from None
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(
            source,
            f"expects audio at {extractor.sampling_rate} Hz, not at {SAMPLE_RATE} Hz; choose another checkpoint",
        )
    vars(extractor).pop("auto_map", None)  # code that foldray never runs is not written back either
    holder: Any = model  # no stock model has this attribute
    holder.extractor = extractor


def _check_options(options: object) -> None:
    """Raise ValueError for what is no mapping, or has a number that would take all memory (mel bins, FFT sizes)."""
    if not isinstance(options, dict):
        raise ValueError("it is not a mapping")
    numbers = [(name, value) for name, value in options.items() if isinstance(value, int | float)]
    if large := [name for name, value in numbers if not abs(value) <= LARGEST_OPTION]:
        raise ValueError(f"{large[0]} is over {LARGEST_OPTION:,}")


WINDOW_STEP = 16 * 320
"""Samples (0.32 s, sixteen frames) that windows of the audio's length are a multiple of: few shapes, little padding."""

LARGEST_OPTION = 2**20
"""Largest number in a feature extractor's options; Whisper's is the 480,000 samples of its window."""


def build_extractor(model: FoldedModel) -> Any:
    """Build the stock feature extractor of a model: that of its checkpoint, or its family's usual one."""
    if (own := getattr(model, "extractor", None)) is not None:
        return own
    family = family_of(model)
    options = family.extractor_options(model.config)
    return transformers_class(family.extractor)(**options, sampling_rate=SAMPLE_RATE)


def extract_features(model: FoldedModel, extractor: Any, waveforms: list[npt.NDArray[np.float32]]) -> dict[str, Tensor]:
    """Compute the stock model's keyword arguments for a batch of 16 kHz waveforms, padded to the longest.

    The extractor always computes a mask, even if the model was trained without: it would otherwise
    normalise an utterance together with its padding.

    Raises:
        UserError: An utterance is longer than the window of a model with a fixed length.
    """
    family = family_of(model)
    extracted = extractor(
        waveforms,
        sampling_rate=SAMPLE_RATE,
        padding="max_length" if family.fixed_length else True,
        max_length=_window(model, extractor, waveforms) if family.fixed_length else None,
        return_attention_mask=True,
        return_tensors="pt",
    )
    inputs = {family.inputs: extracted[family.inputs]}
    if extractor.return_attention_mask and not family.fixed_length:
        inputs[family.mask] = extracted[family.mask]
    return inputs


def _window(model: FoldedModel, extractor: Any, waveforms: Sequence[npt.NDArray[np.float32]]) -> int:
    """Samples of the window of a batch: the extractor's own, or the longest utterance in whole frames."""
    longest = max(map(len, waveforms))
    if longest > extractor.n_samples:
        problem = f"{longest / SAMPLE_RATE:.1f} s are longer than the model's window of {extractor.chunk_length} s"
        raise UserError("audio", f"{problem}; cut it into shorter pieces")
    if not takes_audio_window(model.config):
        return int(extractor.n_samples)
    return min(-(-longest // WINDOW_STEP) * WINDOW_STEP, int(extractor.n_samples))
