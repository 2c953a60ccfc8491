"""Private parts: parameters that each repeated use of a physical layer has for itself.

Every private part is a function of a stock module's own tensors: a norm's scale and shift, or a
BatchNorm's statistics, are replaced, a projection gets a low-rank term, a branch's last projection
is scaled and shifted. So the tensors of any (layer, use) can be written as those of a stock module, and
a folded model computes with exactly these tensors: it equals an unrolled copy, and the seed until the
parts are trained.

A stock module's class is replaced by one whose `weight` and `bias` are those of the running use. Its
parameters keep their stock names; private ones are added as `private.<use>.<part>`.
"""

import functools
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from foldray.folding.block_shape import BlockShape, Norm, Projection
from foldray.folding.plan import Private

USE = "fold_use"
"""Keyword in which the stack passes a block its use. It is an argument of `forward`, so that activation
checkpointing, which calls `forward` again in backward, runs the same use; a hook would not run there."""

SEED_USE = "0"

NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.GroupNorm, nn.RMSNorm)


class RunningUse:
    """The use of a block that is running; shared by the private modules of that block.

    A string: torch.compile treats ints as dynamic and then can't look up the parts by them.
    """

    number = SEED_USE


class PrivateModule(nn.Module):
    """Mixin for a stock module that has private parameters; `weight` and `bias` are those of the running use."""

    stock: type[nn.Module]
    private: nn.ModuleDict
    running: RunningUse

    @property
    def weight(self) -> Tensor | None:
        """The weight of the running use; at use 0 the stock one."""
        return self.at_use("weight", self.running.number)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the running use; at use 0 the stock one."""
        return self.at_use("bias", self.running.number)

    @property
    def active_statistics(self) -> nn.Module:
        """The module with a BatchNorm's statistics for the running use."""
        return self.statistics_of(self.running.number)

    def statistics_of(self, use: str) -> nn.Module:
        """Return the module with a BatchNorm's statistics for one use: the norm itself, or that use's parts."""
        own = None if use == SEED_USE else self.private[use]
        return self if own is None or "running_mean" not in own._buffers else own

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _blank, (PrivateModule, self.stock), self.__getstate__()  # type: ignore[no-untyped-call]

    def at_use(self, name: str, use: str) -> Tensor | None:
        """Return `weight` or `bias` of one use; None if the module has none."""
        stock = self._parameters.get(name)
        if stock is None or use == SEED_USE:
            return stock
        parts: dict[str, Any] = self.private[use]._parameters
        tensor: Tensor = parts.get(name, stock)
        if name == "weight" and "lora_a" in parts:
            # Merged, not applied in parallel: one more product of small matrices, and equal to the unrolled model.
            tensor = tensor + (parts["lora_b"] @ parts["lora_a"]).view_as(tensor)
        if "scale" in parts:
            tensor = tensor * (1 + parts["scale"]).view(-1, *[1] * (tensor.ndim - 1))
            if name == "bias":
                tensor = tensor + parts["shift"]
        made_here = tensor is not stock and tensor is not parts.get(name)
        if made_here and not torch.is_grad_enabled() and not _rounds_anyway(tensor.device.type):
            # torch.matmul chooses its kernel by this flag; without it inference rounds unlike the unrolled
            # model. Autocast rounds anyway, and would keep a copy of every tensor that has it.
            tensor.requires_grad_()
        return tensor


class PrivateBlock(nn.Module):
    """Mixin for a stock block that contains private modules."""

    stock: type[nn.Module]
    running: RunningUse

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _blank, (PrivateBlock, self.stock), self.__getstate__()  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, fold_use: str = SEED_USE, **kwargs: Any) -> Any:
        """Run the stock block as one use of it."""
        self.running.number = fold_use
        return super().forward(*args, **kwargs)


def _rounds_anyway(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@functools.cache
def _own_class(kind: type[nn.Module], stock: type[nn.Module]) -> type[nn.Module]:
    return type(f"Private{stock.__name__}", (kind, stock), {"stock": stock})


def _blank(kind: type[nn.Module], stock: type[nn.Module]) -> nn.Module:
    """An empty module of a class created here, which pickle and deepcopy can't find by its name."""
    own: type[nn.Module] = _own_class(kind, stock)  # type: ignore[arg-type]  # mypy: classes are not Hashable
    return own.__new__(own)


def block_shape(block: nn.Module) -> BlockShape:
    """Describe the projections and norms of a block."""
    projections, norms = [], []
    for path, module in block.named_modules():
        if is_projection(module):
            projections.append(_projection(path, module))
        if isinstance(module, NORMS):
            buffers = [tensor for _, tensor in module.named_buffers(recurse=False)]
            norms.append(
                Norm(
                    parameters=tuple(tuple(tensor.shape) for _, tensor in module.named_parameters(recurse=False)),
                    statistics=tuple(tuple(tensor.shape) for tensor in buffers if tensor.is_floating_point()),
                    counters=tuple(tuple(tensor.shape) for tensor in buffers if not tensor.is_floating_point()),
                )
            )
    return BlockShape(type(block).__name__, tuple(projections), tuple(norms))


def _projection(path: str, module: nn.Module) -> Projection:
    outputs, inputs = module.get_parameter("weight").shape[:2]
    return Projection(path.rsplit(".", 1)[-1], outputs, inputs, module.bias is not None)


def add_private_parts(block: nn.Module, private: Private, uses: int) -> None:
    """Give a block private parts for its uses 1 to `uses` - 1; they have no effect before they are trained."""
    if not private or uses < 2:
        return
    running = RunningUse()
    for path, module in list(block.named_modules()):
        parts = [
            _Parts(_fresh_parts(path, module, private), _fresh_statistics(module, private)) for _ in range(1, uses)
        ]
        if parts[0].state_dict():
            own: Any = module
            own.__class__ = _own_class(PrivateModule, type(module))  # type: ignore[arg-type]
            own.private = nn.ModuleDict({str(use): own_parts for use, own_parts in enumerate(parts, 1)})
            own.running = running
    user: Any = block
    user.__class__ = _own_class(PrivateBlock, type(block))  # type: ignore[arg-type]
    user.running = running


class _Parts(nn.Module):
    """The private parameters of one module at one use, and its private statistics."""

    def __init__(self, parameters: dict[str, Tensor], statistics: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in statistics.items():
            self.register_buffer(name, tensor)
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))


def _fresh_parts(path: str, module: nn.Module, private: Private) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    if private.norms and isinstance(module, NORMS):
        # Copies: a private norm starts as the seed's.
        parts.update({key: tensor.detach().clone() for key, tensor in module.named_parameters(recurse=False)})
    if not is_projection(module):
        return parts
    shape = _projection(path, module)
    if shape.takes_lora(private):
        parts["lora_a"] = _like(module, private.lora_rank, shape.inputs)
        nn.init.kaiming_uniform_(parts["lora_a"], a=5**0.5)  # as arXiv 2106.09685, section 4.1: B is zero
        parts["lora_b"] = _like(module, shape.outputs, private.lora_rank)
    if shape.takes_film(private):
        parts["scale"] = _like(module, shape.outputs)
        if shape.bias:
            parts["shift"] = _like(module, shape.outputs)
    return parts


def _fresh_statistics(module: nn.Module, private: Private) -> dict[str, Tensor]:
    if not (private.statistics and isinstance(module, nn.BatchNorm1d)):
        return {}
    return {key: tensor.clone() for key, tensor in module.named_buffers(recurse=False)}


def _like(module: nn.Module, *shape: int) -> Tensor:
    weight = module.get_parameter("weight")
    return torch.zeros(*shape, dtype=weight.dtype, device=weight.device)


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a matrix product: a linear layer, or a convolution over single frames."""
    pointwise = isinstance(module, nn.Conv1d) and module.kernel_size == (1,) and module.groups == 1
    return isinstance(module, nn.Linear) or pointwise


def private_modules(module: nn.Module) -> list[PrivateModule]:
    """List the modules in `module` that have private parts."""
    return [each for each in module.modules() if isinstance(each, PrivateModule)]


@torch.no_grad()
def merge_private(block: nn.Module, use: int) -> None:
    """Merge the private parts of one use into a copy of a block, in place; it becomes a stock block."""
    for module in private_modules(block):
        chosen = str(min(use, len(module.private)))
        tensors = {name: module.at_use(name, chosen) for name in ("weight", "bias")}
        tensors.update(module.statistics_of(chosen).named_buffers(recurse=False))
        del module.private, module.running
        module.__class__ = module.stock  # type: ignore[assignment]
        for name, tensor in tensors.items():
            if tensor is not None:
                getattr(module, name).copy_(tensor)
    if isinstance(block, PrivateBlock):
        del block.running
        block.__class__ = block.stock  # type: ignore[assignment]


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a folded model's state dict into that of its stock seed, and the private parts."""
    own = {key: tensor for key, tensor in state.items() if is_private_key(key)}
    return {key: tensor for key, tensor in state.items() if key not in own}, own


def is_private_key(key: str) -> bool:
    """Whether a key of a folded model's state dict names a private part."""
    return ".private." in key
