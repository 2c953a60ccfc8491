"""LASR with CTC: Conformer blocks with rotary positions; windows and convolutions without padding."""

from typing import TYPE_CHECKING

from foldray.models.families._family import Family
from foldray.models.families._mel import kaldi_windows, mel_bins, options
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    frames: Tensor = model.encoder._get_subsampling_output_length(kaldi_windows(samples))
    return frames


def _input_shape(model: FoldedModel, samples: int) -> tuple[int, ...]:
    return (1, kaldi_windows(samples), mel_bins(model.config))


FAMILY = Family(
    name="lasr",
    model="LasrForCTC",
    config="LasrCTCConfig",
    extractor="LasrFeatureExtractor",
    encoder="encoder",
    frames=_frames,
    input_shape=_input_shape,
    extractor_options=options,
    mel_bins=mel_bins,
    inputs="input_features",
    ctc_head="ctc_head",
    head=("ctc_head.",),
    nested=True,
    front=("encoder.subsampler.",),
)
