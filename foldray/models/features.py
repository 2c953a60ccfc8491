"""Feature extractors, and the shapes of what goes in and out of a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import UserError
from foldray.models.families import Family, family_of, transformers_class
from foldray.models.fold import encoder_of

MEL_BINS = 80


def output_frames(model: nn.Module, num_samples: Sequence[int]) -> list[int]:
    """Valid output frames of utterances of so many samples (16 kHz), as the model's own masks count them."""
    samples = torch.tensor(list(num_samples))
    stock: Any = getattr(model, "module", model)
    features = family_of(stock).features
    frames: Any
    if features == "mel":
        frames = _subsampler(stock)._get_subsampling_output_length(samples // 160)
    elif features == "stacked_mel":
        frames = _windows(samples) // _stacked(stock)
    elif features == "thirty_seconds":
        frames = torch.full_like(samples, stock.config.max_source_positions)
    else:
        # SEW squeezes frames in groups and widens them again; only whole groups count (see whole_frames).
        group = getattr(stock.config, "squeeze_factor", 1)
        frames = stock._get_feat_extract_output_lengths(samples) // group * group
    return [int(count) for count in frames]


def _subsampler(model: nn.Module) -> Any:
    return model if hasattr(model, "_get_subsampling_output_length") else encoder_of(model)


def whole_frames(model: nn.Module, waveform_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The waveform without a rest that would be kept or dropped depending on the rest of the batch.

    Wav2Vec2-BERT stacks windows and SEW squeezes frames; an unfinished group at the end is cut from
    the batch's longest utterance only, so padding would change the shorter ones.
    """
    family = family_of(model)
    config: Any = model.config
    if family.features == "stacked_mel":
        windows = _windows(len(waveform_T)) // _stacked(model) * _stacked(model)
        return waveform_T[: 400 + 160 * (windows - 1)]
    if family.name == "sew":
        return waveform_T[: _samples_for(config, output_frames(model, [len(waveform_T)])[0])]
    return waveform_T


def _samples_for(config: Any, frames: int) -> int:
    """The fewest samples that a stack of convolutions turns into so many frames."""
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames


def mel_bins(model: nn.Module) -> int:
    """Mel bins of one 10 ms window of a log-mel family."""
    config: Any = model.config
    return int(config.encoder_config.num_mel_bins) if family_of(model).features == "mel" else MEL_BINS


def _windows(samples: Any) -> Any:
    """25 ms windows every 10 ms."""
    return (samples - 400) // 160 + 1


def _stacked(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.feature_projection_input_dim) // MEL_BINS


def keep_extractor(model: Any, family: Family, source: str) -> None:
    """Remember the feature extractor that lies beside a checkpoint (a folder or hub name), if there is one.

    Checkpoints of one family differ in it: WavLM base reads audio as it is, WavLM large normalised.
    Raises UserError for one of another rate.
    """
    try:
        extractor = transformers_class(family.extractor).from_pretrained(source)
    except OSError:
        return
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(source, f"reads audio at {extractor.sampling_rate} Hz; foldray prepares {SAMPLE_RATE}")
    model.extractor = extractor


def build_extractor(model: nn.Module) -> Any:
    """The stock feature extractor whose features this model reads: the one it came with, or its family's usual one."""
    if (own := getattr(model, "extractor", None)) is not None:
        return own
    config: Any = model.config
    family = family_of(model)
    extractor = transformers_class(family.extractor)
    if family.features == "mel":
        return extractor(feature_size=config.encoder_config.num_mel_bins, sampling_rate=SAMPLE_RATE)
    if family.features == "thirty_seconds":
        seconds = config.max_source_positions // 50  # windows every 10 ms, halved by the front end
        return extractor(feature_size=config.num_mel_bins, chunk_length=seconds, sampling_rate=SAMPLE_RATE)
    if family.features == "stacked_mel":
        stride = config.feature_projection_input_dim // MEL_BINS
        return extractor(num_mel_bins=MEL_BINS, feature_size=MEL_BINS, stride=stride, sampling_rate=SAMPLE_RATE)
    if family.name == "moonshine":
        return extractor(sampling_rate=SAMPLE_RATE, do_normalize=False, return_attention_mask=True)
    # A GroupNorm front end was trained without masks; its outputs change with padding by nature.
    masks = getattr(config, "feat_extract_norm", "layer") == "layer"
    return extractor(sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=masks)


def extract_features(
    model: PreTrainedModel, extractor: Any, waveforms: list[npt.NDArray[np.float32]]
) -> dict[str, Tensor]:
    """The stock model's keyword arguments for a batch of 16 kHz waveforms, padded to the longest.

    The extractor always makes a mask, also where the model was trained without: it would else
    normalise an utterance together with its padding.
    """
    family = family_of(model)
    whole = family.features == "thirty_seconds"
    made = extractor(
        waveforms,
        sampling_rate=SAMPLE_RATE,
        padding="max_length" if whole else True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    inputs = {family.inputs: made[family.inputs]}
    if extractor.return_attention_mask and not whole:
        inputs["attention_mask"] = made["attention_mask"]
    return inputs
