"""Count parameters, bytes, multiply-accumulates and kept activations of a model, also of one on the meta device."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foldray.folding.private import is_private_key
from foldray.folding.stack import FoldedStack
from foldray.models.cost_sums import bytes_at


def count_parameters(model: nn.Module) -> int:
    """Count stored parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module, precision: str | None = None) -> int:
    """Count the bytes of weights and buffers, each tensor once: as they are, or stored at a precision.

    `int8` stores matrices and convolutions as one byte a weight and a float32 scale for each output
    channel (symmetric, as in torch's and ONNX Runtime's weight quantisation), everything else in float32.
    """
    distinct = {tensor.data_ptr() or id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(_bytes_of(tensor, precision) for tensor in distinct.values())


def _bytes_of(tensor: Tensor, precision: str | None) -> int:
    if precision is None or not tensor.is_floating_point():
        return tensor.numel() * tensor.element_size()
    return bytes_at(tuple(tensor.shape), precision)


def count_private(stack: FoldedStack, depth: int) -> int:
    """Count the parameters of the private parts that one depth runs."""
    uses = stack.plan.uses([depth])
    return sum(
        parameter.numel()
        for block, count in zip(stack.physical_layers(), uses, strict=True)
        for key, parameter in block.named_parameters()
        if is_private_key(key) and int(key.split(".private.")[1].split(".")[0]) < count
    )


def count_macs(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Count the multiply-accumulates of a forward pass at the depths that the model is set to.

    They are half the floating-point operations that torch's counter finds in matrix products and convolutions.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return float(counter.get_total_flops()) / 2


def count_kept_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Count the bytes of activations that a forward pass keeps for backward, in the model's precision and mode."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too: another one could get the storage of one that is gone

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
