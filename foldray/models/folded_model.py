"""The part of transformers' models that foldray uses, as a type."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class FoldedModel(Protocol):
    """A stock or folded transformers model: a `PreTrainedModel` with its family's own attributes and configuration."""

    config: Any
    training: bool

    @property
    def device(self) -> "torch.device": ...
    def __call__(self, **inputs: "Tensor") -> Any: ...
    def __getattr__(self, name: str) -> Any: ...
    def parameters(self) -> "Iterator[nn.Parameter]": ...
    def named_parameters(self) -> "Iterator[tuple[str, nn.Parameter]]": ...
    def get_submodule(self, target: str) -> "nn.Module": ...
    def state_dict(self) -> "dict[str, Tensor]": ...
