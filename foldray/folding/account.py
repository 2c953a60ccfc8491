"""What a fold costs: stored and unrolled parameters, bytes, multiply-accumulates. Shapes only, nothing runs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foldray.folding.stack import FoldedStack


@dataclass(frozen=True)
class DepthCost:
    """One depth of a fold. params_stored: what must be stored to run it, the same at every depth;
    params_unrolled: an unshared model of that depth."""

    depth: int
    path: tuple[int, ...]
    params_stored: int
    params_unrolled: int
    bytes_stored: int
    macs_per_audio_second: float


def count_parameters(model: nn.Module) -> int:
    """Stored parameters, each shared one once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Bytes of the weights as stored, buffers included, each tensor once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def depth_costs(model: nn.Module, stack: FoldedStack, inputs: dict[str, Tensor], seconds: float) -> list[DepthCost]:
    """The cost of every depth of a folded model on the meta device.

    inputs: one utterance of `seconds` on the meta device. MACs are half the floating-point
    operations that torch's own counter finds in matrix products and convolutions.
    """
    block_params = [sum(p.numel() for p in block.parameters()) for block in stack.physical_layers()]
    stored = count_parameters(model)
    before = stack.run_depths
    costs = []
    for depth in stack.plan.depths:
        stack.run_depths = (depth,)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
        path = stack.plan.path(depth)
        unrolled = stored - sum(block_params) + sum(block_params[layer] for layer in path)
        macs = counter.get_total_flops() / 2 / seconds
        costs.append(DepthCost(depth, path, stored, unrolled, count_bytes(model), macs))
    stack.run_depths = before
    return costs
