"""One model over many workers: DistributedDataParallel, or FSDP2, each stored block wrapped once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from foldray.config.training import ScaleSpec
from foldray.models.fold import stack_of
from foldray.training.context import Worker


def shard(model: nn.Module, worker: Worker, scale: ScaleSpec) -> None:
    """Apply what a spec asks for to the blocks, in place; with FSDP2 every worker keeps its share of each tensor.

    Comes before the optimiser, which holds what is left of each parameter, and after the weights are loaded.
    """
    if scale.activation_checkpointing:
        stock: Any = model
        # The reentrant kind fails where a block runs twice (seen with two gloo ranks).
        stock.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    blocks = stack_of(model).physical_layers()
    if scale.compile:
        for block in blocks:
            block.compile(dynamic=True)
    if scale.strategy == "fsdp" and worker.world > 1:
        mesh = init_device_mesh(worker.device.type, (worker.world,))
        for block in blocks:
            # A block runs several times in one pass: it stays whole between its uses.
            fully_shard(block, mesh=mesh, reshard_after_forward=False)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)


def wrap(model: nn.Module, worker: Worker, *, find_unused: bool) -> nn.Module:
    """The module to call: under DistributedDataParallel, unless it is sharded or this worker is alone."""
    if worker.world == 1 or is_sharded(model):
        return model
    # Where it looks for none that is unused, it lays out its buffers anew after the first step: three or more gloo
    # ranks, whose sums depend on the layout, would then not resume to the same bits.
    fixed = find_unused or worker.device.type == "cpu"
    # Gradients that are views of the exchanged buffers: no second copy of them.
    return DistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=fixed, gradient_as_bucket_view=True
    )


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 spreads the model over the workers."""
    return isinstance(model, FSDPModule)


@contextmanager
def accumulating(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Exchange gradients after the last micro-batch of a step only; FSDP2 does so every time, to hold no whole one."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is no longer spread over the workers; all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, where and as `parameter` is kept; nothing is sent, every worker takes its own share."""
    moved = tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor):
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return moved


def gradient_norm(model: nn.Module, most: float) -> Tensor:
    """The norm of all gradients, which are scaled down to `most` where it is greater."""
    return whole(torch.nn.utils.clip_grad_norm_(model.parameters(), most))
