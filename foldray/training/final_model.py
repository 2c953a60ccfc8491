"""The final model: a moving average of the weights during training, a mean of checkpoints at its end."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from foldray import storage
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.models.save_load import load_model, save_model
from foldray.storage.layout import FOLD_FILE, Run
from foldray.training.fencing import Attempt, check_newest
from foldray.training.job import TrainJob
from foldray.training.parallel import like
from foldray.training.run_folder import whole_checkpoints


class MovingAverage:
    """Exponential moving average of everything that training changes: parameters and the norms' running statistics.

    Attributes:
        weights: The averages by name, sharded as the model is; empty without a decay.
    """

    def __init__(self, model: nn.Module, decay: float | None, saved: dict[str, Tensor]) -> None:
        # Tied tensors under each of their names: a file in which they differ would untie them.
        named = model.named_parameters(remove_duplicate=False)
        trained: dict[str, Tensor] = {name: parameter for name, parameter in named if parameter.requires_grad}
        trained |= {name: buffer for name, buffer in model.named_buffers() if "running_" in name}
        self._update = get_ema_multi_avg_fn(decay or 0.0)
        self.weights: dict[str, Tensor] = {}
        if decay:
            self.weights = {
                name: like(saved[name], parameter) if saved else parameter.detach().clone()
                for name, parameter in trained.items()
            }
        # FSDP2 shards no buffer, and one call takes sharded tensors or plain ones, but not both.
        sharded = [name for name in self.weights if isinstance(trained[name], DTensor)]
        plain = [name for name in self.weights if not isinstance(trained[name], DTensor)]
        self._groups = [
            ([self.weights[name] for name in names], [trained[name] for name in names])
            for names in (sharded, plain)
            if names
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Update the moving average of the weights after an optimizer step."""
        for averages, trained in self._groups:
            self._update(averages, trained, 0)


def finish_run(job: TrainJob, steps: list[int], attempt: Attempt) -> None:
    """Write the final model: the mean of the checkpoints of these steps.

    Args:
        job: The job.
        steps: Steps of the checkpoints, in order.
        attempt: The attempt that writes.

    Raises:
        RunStopped: A newer attempt owns the run.
        UserError: A checkpoint is missing.
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
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder, read_manifest(job.corpus).tokenizer)
        check_newest(job.run, attempt)
        # `fold.json` last: it marks a complete model.
        storage.upload(Path(folder), Run(job.run).model.uri, last=FOLD_FILE)


def mean_weights(uris: Sequence[str]) -> dict[str, Tensor]:
    """Return the mean of the weights of model folders, summed in double precision in the given order."""
    total: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for uri in uris:
        state = load_model(uri).state_dict()
        total = {name: total[name] + tensor.double() if total else tensor.double() for name, tensor in state.items()}
    return {name: (tensor / len(uris)).to(state[name].dtype) for name, tensor in total.items()}
