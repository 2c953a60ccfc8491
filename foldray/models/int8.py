"""Int8 weights: symmetric, with a scale per output channel, as torch and ONNX Runtime quantise weights."""

import torch
from torch import Tensor

SCALE = ".scale"


def to_int8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Quantise the tensors that `is_quantised`: int8 under their name, float32 scales (C, 1, …) under `<name>.scale`.

    Only the stored weights are int8: loading restores float32, in which the model computes.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not is_quantised(tensor):
            stored[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        stored[name] = (tensor / scale).round().to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor is stored as int8: matrices and convolutions are; vectors of any shape stay float32."""
    return tensor.is_floating_point() and sum(size > 1 for size in tensor.shape) > 1


def from_int8(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Restore the state dict given to `to_int8`, each weight within half a quantisation step of its channel.

    Raises ValueError for a weight without its scale.
    """
    if bare := [name for name, tensor in stored.items() if tensor.dtype == torch.int8 and name + SCALE not in stored]:
        raise ValueError(f"{bare[0]} has no scale")
    return {
        name: tensor * stored[name + SCALE] if name + SCALE in stored else tensor
        for name, tensor in stored.items()
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) in stored)
    }
