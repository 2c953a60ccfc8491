"""From the last checkpoints of a run to its final model."""

import tempfile
from pathlib import Path

from foldray import storage
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.model_folder import load_model, save_model
from foldray.plan import FOLD_FILE
from foldray.training.attempts import Attempt, check_newest
from foldray.training.averages import mean_weights
from foldray.training.checkpoint import whole_checkpoints
from foldray.training.job import TrainJob


def is_finished(run: str) -> bool:
    """Whether the run's model is there, whole."""
    return storage.exists(storage.join(run, "model", FOLD_FILE))


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
        save_model(model, made, read_manifest(job.corpus).units)
        check_newest(job.run, attempt)
        storage.upload(Path(made), storage.join(job.run, "model"), last=FOLD_FILE)
