"""Log-mel windows of 10 ms, subsampled by convolutions inside the encoder, as in Parakeet."""

from typing import TYPE_CHECKING, TypeVar

from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

Count = TypeVar("Count", int, "Tensor")
HOP = 160
"""Samples between two log-mel windows (10 ms)."""
WINDOW = 400
"""Samples of one log-mel window (25 ms)."""
MEL_BINS = 80
"""Mel bins where the configuration has no field for them."""


def kaldi_windows(samples: Count) -> Count:
    """Count windows that lie inside the audio, as Kaldi's and LASR's extractors make them; others pad its ends."""
    return (samples - WINDOW) // HOP + 1


def subsampled_frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    """Count output frames of the encoder's subsampling convolutions."""
    frames: Tensor = model.encoder._get_subsampling_output_length(samples // HOP)
    return frames


def windows_shape(model: FoldedModel, samples: int) -> tuple[int, ...]:
    """Return the shape of one utterance's log-mel windows."""
    return (1, samples // HOP, mel_bins(model.config))


def options(config: "PreTrainedConfig") -> dict[str, object]:
    """Return the extractor's options."""
    return {"feature_size": mel_bins(config)}


def mel_bins(config: "PreTrainedConfig") -> int:
    """Read the number of mel bins from the nested encoder configuration."""
    return int(config.encoder_config.num_mel_bins)
