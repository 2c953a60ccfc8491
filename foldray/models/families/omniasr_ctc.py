"""Omnilingual ASR with CTC: wav2vec 2.0 blocks; waveforms have a channel axis, and the mask a name of its own."""

from typing import TYPE_CHECKING

from foldray.models.families._family import Family
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    frames: Tensor = model._get_subsampling_output_length(samples)
    return frames


FAMILY = Family(
    name="omniasr-ctc",
    model="OmniASRForCTC",
    config="OmniASRCTCConfig",
    extractor="OmniASRFeatureExtractor",
    encoder="model.audio_tower",
    frames=_frames,
    input_shape=lambda model, samples: (1, 1, samples),
    extractor_options=lambda config: {},
    mask="padding_mask",
    ctc_head="ctc_head",
    head=("ctc_head.",),
    nested=True,
    nest="audio_config",
    front=("model.audio_tower.subsampling.",),
)
