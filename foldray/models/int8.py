"""Weights of one byte: symmetric, with a scale for each output channel, as torch and ONNX Runtime quantise weights."""

import torch
from torch import Tensor

SCALE = ".scale"


def to_int8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `is_quantised` as int8 under its name, with float32 scales (C, 1, …) under `<name>.scale`; else as it is.

    Only the stored weights are small: they are multiplied out when the model is loaded, and it computes in float32.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not is_quantised(tensor):
            made[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        made[name] = (tensor / scale).round().to(torch.int8)
        made[name + SCALE] = scale
    return made


def is_quantised(tensor: Tensor) -> bool:
    """Whether a weight becomes int8: matrices and convolutions do; vectors, of whatever shape, stay in float32."""
    return tensor.is_floating_point() and sum(size > 1 for size in tensor.shape) > 1


def from_int8(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict behind `to_int8`, every weight off by half a step of its channel at most.

    Raises ValueError for one without its scale.
    """
    if bare := [name for name, tensor in made.items() if tensor.dtype == torch.int8 and name + SCALE not in made]:
        raise ValueError(f"{bare[0]} has no scale")
    return {
        name: tensor * made[name + SCALE] if name + SCALE in made else tensor
        for name, tensor in made.items()
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) in made)
    }
