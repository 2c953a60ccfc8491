"""Averaged weights: a moving average beside training, or the mean of the last checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from foldray.model_folder import load_model
from foldray.training.parallel import like


class MovingAverage:
    """An exponential moving average of all that training moves, as this worker keeps it: parameters, and statistics of
    norms, which are those of the weights; empty without a decay."""

    def __init__(self, model: nn.Module, decay: float | None, begin: dict[str, Tensor]) -> None:
        # Tied tensors under each of their names: a file in which they differ would untie them.
        named = model.named_parameters(remove_duplicate=False)
        trained: dict[str, Tensor] = {name: parameter for name, parameter in named if parameter.requires_grad}
        trained |= {name: buffer for name, buffer in model.named_buffers() if "running_" in name}
        self._trained = list(trained.values()) if decay else []
        self._update = get_ema_multi_avg_fn(decay or 0.0)
        self.weights: dict[str, Tensor] = {}
        if decay:
            self.weights = {
                name: like(begin[name], parameter) if begin else parameter.detach().clone()
                for name, parameter in trained.items()
            }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self.weights:
            self._update(list(self.weights.values()), self._trained, 0)


def mean_weights(uris: Sequence[str]) -> dict[str, Tensor]:
    """The mean of the weights of model folders, summed in double precision in the order given."""
    total: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for uri in uris:
        state = load_model(uri).state_dict()
        total = {name: total[name] + tensor.double() if total else tensor.double() for name, tensor in state.items()}
    return {name: (tensor / len(uris)).to(state[name].dtype) for name, tensor in total.items()}
