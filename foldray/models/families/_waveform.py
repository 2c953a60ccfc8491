"""wav2vec 2.0 and its descendants: one layout under different names, on raw waveforms."""

from typing import TYPE_CHECKING, Any

from foldray.models.families._family import Family
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

PRETRAINING = ("quantizer.", "project_hid.", "project_q.")
"""Parts of pretraining checkpoints that recognition does not use."""


def wav2vec2_like(name: str, prefix: str, base: str, **more: Any) -> Family:
    """Describe a family whose classes are `<prefix>ForCTC` and `<prefix>Config` and whose model lies in `base`."""
    more = {"frames": conv_frames, "input_shape": waveform_shape, "extractor_options": options, **more}
    return Family(
        name,
        model=f"{prefix}ForCTC",
        config=f"{prefix}Config",
        extractor="Wav2Vec2FeatureExtractor",
        encoder=f"{base}.encoder",
        front=(f"{base}.feature_extractor.",),
        **more,
    )


def conv_frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    """Count output frames of the convolutional front end."""
    frames: Tensor = model._get_feat_extract_output_lengths(samples)
    return frames


def waveform_shape(model: FoldedModel, samples: int) -> tuple[int, ...]:  # noqa: ARG001
    """Return the shape of one waveform."""
    return (1, samples)


def options(config: "PreTrainedConfig") -> dict[str, object]:
    """Return the extractor's options; a GroupNorm front end was trained without masks."""
    masks = getattr(config, "feat_extract_norm", "layer") == "layer"
    return {"do_normalize": True, "return_attention_mask": masks}
