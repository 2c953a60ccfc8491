"""Canary: Parakeet's encoder, an attention decoder with a configuration of its own, and no CTC."""

from typing import TYPE_CHECKING

from foldray.models.families import _mel
from foldray.models.families._family import Family
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    return _mel.subsampled_frames(model.model, samples)


FAMILY = Family(
    name="canary",
    model="CanaryForConditionalGeneration",
    config="CanaryConfig",
    extractor="ParakeetFeatureExtractor",
    encoder="model.encoder",
    frames=_frames,
    input_shape=_mel.windows_shape,
    extractor_options=_mel.options,
    mel_bins=_mel.mel_bins,
    inputs="input_features",
    ctc_head=None,
    attention=True,
    decoder="model.decoder",
    head=("proj_out.", "model.decoder.embed_tokens."),
    nested=True,
    decoder_nest="decoder_config",
    untrained="its prompts come from a processor of its own",
    front=("model.encoder.subsampling.",),
)
