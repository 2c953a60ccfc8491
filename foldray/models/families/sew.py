"""SEW: squeezes groups of frames before the blocks and expands them again after."""

from typing import TYPE_CHECKING

from foldray.models.families._waveform import conv_frames, wav2vec2_like
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    group: int = model.config.squeeze_factor
    return conv_frames(model, samples) // group * group  # only whole groups count


def _whole_samples(model: FoldedModel, samples: int) -> int:
    # An unfinished group of frames is cut from the batch's longest utterance only; padding would change the others.
    convolutions = list(zip(model.config.conv_kernel, model.config.conv_stride, strict=True))
    length: int = samples
    for kernel, stride in convolutions:
        length = (length - kernel) // stride + 1
    length = length // model.config.squeeze_factor * model.config.squeeze_factor
    for kernel, stride in reversed(convolutions):  # the fewest samples that give so many frames
        length = (length - 1) * stride + kernel
    return length


FAMILY = wav2vec2_like(
    "sew", "SEW", "sew", frames=_frames, whole_samples=_whole_samples,
    ends_early=False,  # after the blocks it pads the states to the frames that the batch had before them
)  # fmt: skip
