"""Where a run stands, and what follows from that alone: whether it is over, what is validated, which batches come."""

from dataclasses import dataclass

from foldray.config.spec import RunSpec
from foldray.data.epoch import EpochPlan, plan_epoch
from foldray.data.manifest import SplitIndex


@dataclass(frozen=True)
class Position:
    """What comes next: optimiser steps taken, and the epoch and its step to go on with."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0

    def after(self, epoch_steps: int) -> "Position":
        """The position one step on, in an epoch of so many steps."""
        last = self.epoch_step + 1 == epoch_steps
        return Position(self.step + 1, self.epoch + last, 0 if last else self.epoch_step + 1)


def is_at_end(spec: RunSpec, position: Position) -> bool:
    """Whether the run has its full length."""
    optim = spec.optim
    return position.step >= (optim.steps or float("inf")) or position.epoch >= (optim.epochs or float("inf"))


def is_validated(spec: RunSpec, position: Position) -> bool:
    """Whether the checkpoint of a position is scored: at intervals, and at the end."""
    every = spec.valid.every_steps
    due = position.step % every == 0 if every else position.epoch_step == 0
    return position.step > 0 and (due or is_at_end(spec, position))


def steps_to_average(spec: RunSpec, step: int) -> list[int]:
    """A step and those of the planned checkpoints before it, `optim.average` in all, in order."""
    every = spec.checkpoint.every_steps
    before = range((step - 1) // every * every, 0, -every)
    return sorted([step, *before[: spec.optim.average - 1]])


def plan_of(spec: RunSpec, index: SplitIndex, epoch: int) -> EpochPlan:
    """The batches of an epoch."""
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
