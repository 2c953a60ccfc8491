"""From the last checkpoints of a run to its final model."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from foldray import storage
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.models.save_load import load_model, save_model
from foldray.storage.layout import FOLD_FILE, Run
from foldray.training.checkpoint import whole_checkpoints
from foldray.training.context import TrainJob
from foldray.training.fencing import Attempt, check_newest
from foldray.training.parallel import like


def is_finished(run: str) -> bool:
    """Whether the run's model is there, whole."""
    return storage.exists(Run(run).model.fold)


def finish_run(job: TrainJob, steps: list[int], attempt: Attempt) -> None:
    """Write the foldable model, the mean of the checkpoints of these steps; `fold.json` goes last and says it is whole.

    Raises Stopped where a newer attempt owns the run.
    """
    found = {each.step: each.uri for each in whole_checkpoints(job.run)}
    if missing := [step for step in steps if step not in found]:
        raise UserError(
            job.run, f"the checkpoints of steps {missing} are gone; delete the run's folder and train again"
        )
    uris = [found[step] for step in steps]
    model = load_model(uris[-1])
    if len(uris) > 1:
        model.load_state_dict(mean_weights(uris))
    with tempfile.TemporaryDirectory() as made:
        save_model(model, made, read_manifest(job.corpus).tokenizer)
        check_newest(job.run, attempt)
        storage.upload(Path(made), Run(job.run).model.uri, last=FOLD_FILE)


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
