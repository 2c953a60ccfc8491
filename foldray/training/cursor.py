"""Position of a run, and what depends on it alone: the batches to come, what is validated, whether the run is over."""

from dataclasses import dataclass

from foldray.config.spec import RunSpec
from foldray.data.epoch import EpochPlan, plan_epoch
from foldray.data.manifest import SplitIndex


@dataclass(frozen=True)
class Cursor:
    """The next step of a run: optimizer steps taken, the epoch, and the step within the epoch."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0

    def after(self, epoch_steps: int) -> "Cursor":
        """Return the cursor one step later, in an epoch of `epoch_steps` steps."""
        last = self.epoch_step + 1 == epoch_steps
        return Cursor(self.step + 1, self.epoch + last, 0 if last else self.epoch_step + 1)


def is_at_end(spec: RunSpec, cursor: Cursor) -> bool:
    """Return whether the run has its full length."""
    optim = spec.optim
    return cursor.step >= (optim.steps or float("inf")) or cursor.epoch >= (optim.epochs or float("inf"))


def is_validated(spec: RunSpec, cursor: Cursor) -> bool:
    """Return whether the checkpoint at this cursor is scored: at intervals, and at the end."""
    every = spec.valid.every_steps
    due = cursor.step % every == 0 if every else cursor.epoch_step == 0
    return cursor.step > 0 and (due or is_at_end(spec, cursor))


def steps_to_average(spec: RunSpec, step: int) -> list[int]:
    """Return `step` and the steps of the planned checkpoints before it, `optim.average` in all, in order."""
    every = spec.checkpoint.every_steps
    before = range((step - 1) // every * every, 0, -every)
    return sorted([step, *before[: spec.optim.average - 1]])


def plan_of(spec: RunSpec, index: SplitIndex, epoch: int) -> EpochPlan:
    """Return the batches of an epoch."""
    return plan_epoch(
        index,
        seed=spec.seed,
        epoch=epoch,
        max_duration=spec.batch.max_duration,
        per_step=spec.batch.per_step,
        shortest_first=epoch < spec.batch.shortest_first,
        longest_first=spec.batch.longest_first,
        speeds=spec.augment.speeds,
    )
