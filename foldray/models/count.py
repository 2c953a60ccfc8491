"""What a fold costs: stored and unrolled parameters, bytes, multiply-accumulates. Shapes only, nothing runs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foldray.folding.private import is_private_key
from foldray.folding.stack import FoldedStack
from foldray.models.int8 import is_quantised

PRECISIONS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class JointCost:
    """A pass over all depths of a fold as a training step runs it, for a second of audio: multiply-accumulates forward
    (backward is usually taken for twice as much), and bytes of activations that are kept for backward, in float32,
    without dropout."""

    macs_per_audio_second: float
    kept_bytes_per_audio_second: float


@dataclass(frozen=True)
class DepthCost:
    """One depth of a fold.

    params_stored: what must be stored to run every depth, private parts included, the same for each;
    params_private: those of the private parts that this depth runs; params_unrolled: an unshared
    model of that depth; bytes_stored: of all stored weights as they are.
    """

    depth: int
    path: tuple[int, ...]
    trained: bool
    params_stored: int
    params_private: int
    params_unrolled: int
    bytes_stored: int
    macs_per_audio_second: float


def count_parameters(model: nn.Module) -> int:
    """Stored parameters, each shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module, precision: str | None = None) -> int:
    """Bytes of the weights, buffers included, each tensor once: as they are, or stored at a precision.

    `int8` stores matrices and convolutions as one byte a weight and a float32 scale for each output
    channel (symmetric, as in torch's and ONNX Runtime's weight quantisation), everything else in float32.
    """
    distinct = {tensor.data_ptr() or id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(_bytes_at(tensor, precision) for tensor in distinct.values())


def _bytes_at(tensor: Tensor, precision: str | None) -> int:
    if precision is None or not tensor.is_floating_point():
        return tensor.numel() * tensor.element_size()
    if precision == "int8":
        return tensor.numel() + 4 * tensor.shape[0] if is_quantised(tensor) else 4 * tensor.numel()
    return tensor.numel() * {"float32": 4, "bfloat16": 2}[precision]


def count_private(stack: FoldedStack, depth: int) -> int:
    """Parameters of the private parts that one depth runs."""
    uses = stack.plan.uses([depth])
    return sum(
        parameter.numel()
        for block, count in zip(stack.physical_layers(), uses, strict=True)
        for key, parameter in block.named_parameters()
        if is_private_key(key) and int(key.split(".private.")[1].split(".")[0]) < count
    )


def count_macs(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Multiply-accumulates of a forward pass at the depths that the model is set to: half the floating-point operations
    that torch's own counter finds in matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return float(counter.get_total_flops()) / 2


def count_kept_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes of the activations that a forward pass keeps for its backward, in the model's precision and mode."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too: another one could get the storage of one that is gone

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def depth_costs(
    model: nn.Module,
    stack: FoldedStack,
    unroll: Callable[[int], nn.Module],
    inputs: dict[str, Tensor],
    seconds: float,
    precision: str | None = None,
) -> list[DepthCost]:
    """The cost of every depth that `stack` is set to run, of a folded model on the meta device.

    unroll: gives the unshared model of a depth; inputs: one utterance of `seconds` on the meta device; precision: of
    the stored weights (see `count_bytes`).
    """
    before = stack.run_depths
    costs = []
    for depth in before:
        stack.run_depths = (depth,)
        costs.append(
            DepthCost(
                depth=depth,
                path=stack.plan.path(depth),
                trained=depth in stack.plan.depths,
                params_stored=count_parameters(model),
                params_private=count_private(stack, depth),
                params_unrolled=count_parameters(unroll(depth)),
                bytes_stored=count_bytes(model, precision),
                macs_per_audio_second=count_macs(model, inputs) / seconds,
            )
        )
    stack.run_depths = before
    return costs
