"""Data parallelism: DistributedDataParallel, or FSDP2 with every physical layer wrapped once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from foldray.config.training import ScaleSpec
from foldray.models.fold import decoder_stack_of, stack_of
from foldray.training.context import WorkerContext

RECOMPILE_LIMIT = 64


def shard(model: nn.Module, worker: WorkerContext, scale: ScaleSpec) -> None:
    """Apply checkpointing of activations, compilation and FSDP2 to the blocks, in place.

    Call it after the weights are loaded and before the optimizer is created, which refers to the sharded parameters.
    """
    if scale.activation_checkpointing:
        stock: Any = model
        # The reentrant kind fails if a block runs twice (seen with two gloo ranks).
        stock.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    decoder = decoder_stack_of(model)
    blocks = [*stack_of(model).physical_layers(), *(decoder.physical_layers() if decoder is not None else [])]
    if scale.compile:
        _allow_recompiling()
        for block in blocks:
            block.compile(dynamic=True)
    if scale.strategy == "fsdp" and worker.world > 1:
        mesh = init_device_mesh(worker.device.type, (worker.world,))
        for block in blocks:
            # A block runs several times in one pass: it stays gathered between its uses.
            fully_shard(block, mesh=mesh, reshard_after_forward=False)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _allow_recompiling() -> None:
    """Raise torch's limit of graphs for one function, at which further ones would run uncompiled without a word.

    Each use with private parts is a graph, and on GPUs each remainder of the length by eight may be another.
    """
    from torch._dynamo import config  # takes a second to import

    dynamo: Any = config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)


def wrap(model: nn.Module, worker: WorkerContext, *, find_unused: bool) -> nn.Module:
    """Return the module to call: wrapped in DistributedDataParallel, unless sharded or alone."""
    if worker.world == 1 or is_sharded(model):
        return model
    # Without the search for unused parameters DDP rebuilds its buckets after the first step. Sums over three or more
    # gloo ranks depend on the buckets: a resumed run would not be bit-equal.
    fixed = find_unused or worker.device.type == "cpu"
    # Gradients are views of the buckets: no second copy of them.
    return DistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=fixed, gradient_as_bucket_view=True
    )


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 shards the model."""
    return isinstance(model, FSDPModule)


@contextmanager
def accumulating(model: nn.Module, *, last: bool) -> Iterator[None]:
    """All-reduce gradients after the last micro-batch of a step only; FSDP2 reduces after every one, to save memory."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor unsharded. Collective for a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return an unsharded tensor with the device and sharding of `parameter`; no communication."""
    moved = tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor):
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return moved


def gradient_norm(model: nn.Module, most: float) -> Tensor:
    """Clip all gradients to a total norm of `most`; return the norm before."""
    return whole(nn.utils.clip_grad_norm_(model.parameters(), most))
