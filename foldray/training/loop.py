"""The training loop: epochs of unfolding cycles, validation, checkpoints. The same in one process or in many.

Everything that could differ between an uninterrupted run and a resumed one is a function of the
position: the batches (epoch plan), the learning rate, and the random state, which is set anew
before every micro-batch. What one worker alone knows (a write that failed, a newer attempt, time to
ask for preemptions) travels with the losses of every step, so that all act on it at the same one.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.data.epoch import EpochPlan, plan_epoch
from foldray.data.manifest import SplitIndex, read_index, read_manifest
from foldray.data.stream import Batch, BatchLoader
from foldray.data.text import Units
from foldray.errors import UserError
from foldray.families import family_of
from foldray.model_folder import describe_model
from foldray.results.metrics import Record, read_metrics
from foldray.seeding import initial_distances, load_folded
from foldray.spec import RunSpec
from foldray.training.attempts import Attempt, claim_group
from foldray.training.averages import MovingAverage
from foldray.training.checkpoint import (
    STATE_FILE,
    Found,
    Saved,
    read_checkpoint,
    restore_optimizer,
    take_snapshot,
    whole_checkpoints,
)
from foldray.training.checkpointer import Checkpointer, is_superseded
from foldray.training.cycle import Cycle, Cycled, Exploded
from foldray.training.job import Stopped, Surroundings, TrainJob, Worker
from foldray.training.parallel import shard
from foldray.training.schedule import freeze_front, parameter_groups
from foldray.training.validation import Validations, known_scores

SEED_FILE = "seed.json"
ASK_SECONDS = 5.0
"""How often workers ask together whether a preemption is announced; each asking is a round trip to an actor."""

FAILED, SUPERSEDED, ASK = range(3)
"""Signals that travel with the losses."""


@dataclass(frozen=True)
class Trained:
    """Where the run stood when it began (0 if fresh) and ended, the model, and which steps' make the final one."""

    model: PreTrainedModel
    step: int
    resumed_from_step: int
    final_steps: list[int]
    attempt: Attempt


@dataclass(frozen=True)
class _Position:
    """What comes next: optimiser steps taken, and the epoch and its step to go on with."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0


def train_model(job: TrainJob, worker: Worker, around: Surroundings | None = None) -> Trained:
    """Train to the end of the spec from the newest whole checkpoint.

    Raises Stopped, on every worker, where a newer attempt owns the run or a gradient exploded.
    """
    return _Training(job, worker, around or Surroundings()).run()


class _Training:
    """One worker's state in one attempt at a run."""

    def __init__(self, job: TrainJob, worker: Worker, around: Surroundings) -> None:
        self.job, self.worker, self.around, self.spec = job, worker, around, job.spec
        manifest = read_manifest(job.corpus)
        self.index = read_index(job.corpus, manifest, "train")
        self.attempt, found = _claim(job, worker)
        saved = read_checkpoint(found.uri) if found else None
        self.model, sources = (saved.model, []) if saved else build_model(job, manifest.units)
        self.start = _Position(**saved.position) if saved else _Position()
        nn.Module.to(self.model, worker.device)
        if self.spec.optim.freeze_front:
            freeze_front(self.model)
        described = describe_model(self.model, manifest.units)
        loader = BatchLoader(
            self.index, self.model, manifest.units, self.spec.augment, self.spec.seed, self.spec.scale.loader_threads
        )
        if sources and worker.rank == 0:
            first = _plan(self.spec, self.index, 0).batch(0)
            _report_distances(job, worker, self.model, sources, loader.load(first, epoch=0))
        del sources  # as large as the model
        self._prepare_optimizer(saved)
        self.cycle = Cycle(job, worker, self.model, self.optimizer, loader, self.index)
        self.validates = bool(around.validate and manifest.rows_by_split.get("valid")) and _has_ctc(self.model)
        known = known_scores(read_metrics(job.run), self.start.step) if worker.rank == 0 else {}
        self.validations = Validations(self.spec, known, around.on_record)
        self.checkpointer = (
            Checkpointer(job, self.attempt, described, self._kept_steps, self._on_whole) if worker.rank == 0 else None
        )
        self.records: list[Record] = []
        self.announced: set[str] = set()
        self.asked = time.monotonic()

    def _prepare_optimizer(self, saved: Saved | None) -> None:
        shard(self.model, self.worker, self.spec.scale)
        optim = self.spec.optim
        groups = parameter_groups(self.model, optim)
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas)
        if saved:
            restore_optimizer(self.model, self.optimizer, saved.optimizer)
        self.average = MovingAverage(self.model, optim.ema, saved.averaged if saved else {})

    # --- The run ---

    def run(self) -> Trained:
        try:
            self._validate_again()
            position = self._train()
            self._act_on(self._signals_at_end())
            if self.worker.rank == 0:
                self.validations.settle()
            return Trained(self.model, position.step, self.start.step, self._final_steps(position), self.attempt)
        finally:
            if self.checkpointer:
                self.checkpointer.close()

    def _train(self) -> _Position:
        position = self.start
        try:
            for position, cycled in self._cycles():
                self._after_step(position, cycled)
        except Exploded as exploded:
            self._stop_exploded(position, exploded.facts)
        return position

    def _cycles(self) -> Iterator[tuple[_Position, Cycled]]:
        """Every optimiser step from the start to the end of the run: the position behind it, and what it gave."""
        position = self.start
        self.cycle.signals = self._signals()
        while not self._is_over(position):
            plan = _plan(self.spec, self.index, position.epoch)
            for cycled in self.cycle.run_epoch(plan, position.epoch_step, position.step):
                record = {"step": position.step + 1, "epoch": position.epoch, **cycled.record}
                last = cycled.epoch_step + 1 == len(plan)
                position = _Position(position.step + 1, position.epoch + last, 0 if last else cycled.epoch_step + 1)
                yield position, Cycled(cycled.epoch_step, record, cycled.signals)
                if self._is_over(position):
                    return

    def _after_step(self, position: _Position, cycled: Cycled) -> None:
        self.average.update()
        self.records.append(cycled.record)
        self._act_on(cycled.signals)
        preempted = self._is_preempted(cycled.signals)
        validated = self.validates and self._is_validated(position)
        if validated:
            self._settle_validation()
        if preempted or validated or position.step % self.spec.checkpoint.every_steps == 0 or self._is_over(position):
            self._save(position)
        if preempted and self.checkpointer:
            self.checkpointer.settle()
        self.around.on_record(cycled.record)
        self.cycle.signals = self._signals()

    def _is_over(self, position: _Position) -> bool:
        optim = self.spec.optim
        if position.step >= (optim.steps or float("inf")) or position.epoch >= (optim.epochs or float("inf")):
            return True
        if self.spec.valid.patience is None or not self.validates or not self._is_validated(position):
            return False
        over = self.validations.is_over(position.step) if self.worker.rank == 0 else False
        return bool(self.worker.from_first([over])[0])

    # --- Checkpoints ---

    def _save(self, position: _Position) -> None:
        began = time.perf_counter()
        first = self.worker.rank == 0
        kept = take_snapshot(self.model, self.optimizer, self.average.weights, first=first)
        if self.checkpointer and kept:
            self.checkpointer.save(vars(position), kept, self.records, began)
        self.records = []

    def _kept_steps(self, step: int) -> set[int]:
        every, count = self.spec.checkpoint.every_steps, self.spec.optim.average
        return self.validations.kept_steps() | set(_last_steps(step, every, count))

    def _final_steps(self, position: _Position) -> list[int]:
        """The steps of the checkpoints that the final model is made of; the first worker knows."""
        best = self.validations.best_step() if self.spec.valid.final == "best" else None
        if best is not None:
            return [best]
        return _last_steps(position.step, self.spec.checkpoint.every_steps, self.spec.optim.average)

    # --- Signals ---

    def _signals(self) -> list[float]:
        """What this worker has to say with the next step."""
        failure = self.checkpointer.failure if self.checkpointer else None
        asks = bool(self.around.preempted) and self.worker.rank == 0 and time.monotonic() - self.asked > ASK_SECONDS
        return [float(failure is not None), float(is_superseded(failure)), float(asks)]

    def _signals_at_end(self) -> list[float]:
        if self.checkpointer:
            self.checkpointer.settle()
        return [float(value) for value in self.worker.from_first([int(value) for value in self._signals()])]

    def _act_on(self, signals: list[float]) -> None:
        """Stop, all together, where the first worker could not write."""
        if not signals[FAILED]:
            return
        failure = self.checkpointer.failure if self.checkpointer else None
        if signals[SUPERSEDED]:
            raise Stopped(self.job.run, failure.problem if isinstance(failure, UserError) else "was taken over")
        raise failure or RuntimeError("the first worker could not write a checkpoint")

    def _is_preempted(self, signals: list[float]) -> bool:
        """Whether a preemption is announced that was not answered by a checkpoint yet."""
        if not signals[ASK] or self.around.preempted is None:
            return False
        self.asked = time.monotonic()
        announced = self.around.preempted()
        if announced is None or announced in self.announced:
            return False
        self.announced.add(announced)
        return True

    def _stop_exploded(self, position: _Position, facts: dict[str, Any]) -> None:
        """Write down what exploded, and stop before it reaches the weights."""
        file = storage.join(self.job.run, "exploded", f"step-{position.step + 1:08d}.json")
        if self.checkpointer:
            self.checkpointer.settle()
            self.checkpointer.write_records(self.records)
            storage.write_json(file, {"step": position.step + 1, **facts})
        norm, limit = facts["grad_norm"], self.spec.optim.stop_norm
        reason = f"is {norm:.3g}, over optim.stop_norm={limit:g}" if norm >= limit else "is not finite"
        raise Stopped(
            "training",
            f"the gradient of step {position.step + 1} {reason}; the {len(facts['ids'])} utterances of its batch are "
            f"in {file}, the weights before it in the newest checkpoint. Lower optim.lr, lengthen optim.warmup, or "
            "look at these utterances",
        )

    # --- Validation ---

    def _is_validated(self, position: _Position) -> bool:
        every, optim = self.spec.valid.every_steps, self.spec.optim
        at_end = position.step == optim.steps or position.epoch == optim.epochs
        return position.step > 0 and (at_end or (position.step % every if every else position.epoch_step) == 0)

    def _settle_validation(self) -> None:
        """Wait for the validation before this one, which has had all the time since it began."""
        if self.checkpointer:
            began = time.perf_counter()
            self.checkpointer.settle()
            self.validations.settle()
            self.records[-1]["validation_wait"] = time.perf_counter() - began

    def _on_whole(self, position: dict[str, int], uri: str) -> None:
        """Begin to score a checkpoint that is in the store, where it is one that is scored."""
        if self.validates and self.around.validate and self._is_validated(_Position(**position)):
            self.validations.begin(position["step"], self.around.validate(position["step"], uri))

    def _validate_again(self) -> None:
        """Score the newest checkpoint that a killed attempt began to score and did not finish."""
        if not self.checkpointer or not self.validates:
            return
        scored = self.validations.scores()
        for found in reversed(whole_checkpoints(self.job.run)):
            position = storage.read_json(storage.join(found.uri, STATE_FILE))
            if self._is_validated(_Position(**position)):
                if found.step not in scored:
                    self._on_whole(position, found.uri)
                return


def _last_steps(step: int, every: int, count: int) -> list[int]:
    """The step and those of the planned checkpoints before it, `count` in all, in order."""
    before = range((step - 1) // every * every, 0, -every)
    return sorted([step, *before[: count - 1]])


def _has_ctc(model: nn.Module) -> bool:
    """Whether a model can be scored by its CTC head."""
    return family_of(model).kind != "attention"


def _claim(job: TrainJob, worker: Worker) -> tuple[Attempt, Found | None]:
    """This attempt's name and the checkpoint to go on from, as the first worker finds them. Raises Stopped."""
    numbers = [0] * 5
    stopped: Stopped | None = None
    if worker.rank == 0:
        try:
            attempt = claim_group(job.run, job.submission)
            found = whole_checkpoints(job.run)
            newest = found[-1] if found else Found(0, Attempt(0), "")
            numbers = [attempt.submission, attempt.group, newest.step, *vars(newest.attempt).values()]
        except Stopped as error:
            stopped = error
    submission, group, step, *of_checkpoint = worker.from_first(numbers)
    if not submission:
        raise stopped or Stopped(job.run, "was taken over by a newer attempt")
    if not step:
        return Attempt(submission, group), None
    found_there = Found(step, Attempt(*of_checkpoint), "")
    uri = storage.join(job.run, "checkpoints", f"step-{step:08d}-{found_there.attempt}")
    return Attempt(submission, group), Found(step, found_there.attempt, uri)


def _plan(spec: RunSpec, index: SplitIndex, epoch: int) -> EpochPlan:
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


def build_model(job: TrainJob, units: Units) -> tuple[PreTrainedModel, list[nn.Module]]:
    """The folded model at its initial weights, the same in every process, and a deeper checkpoint's own layers."""
    spec = job.spec
    model, sources, _ = load_folded(spec.model, job.init, spec.fold.plan(), units, spec.seed)
    return model, sources


def _report_distances(
    job: TrainJob, worker: Worker, model: PreTrainedModel, sources: list[nn.Module], batch: Batch
) -> None:
    """Write `seed.json`: how far each depth begins from the checkpoint that it was made of, on one batch."""
    moved = batch.to(worker.device)
    layers = [layer.to(worker.device) for layer in sources]
    distances = initial_distances(model, layers, moved.inputs, moved.frames_B)
    values = {"checkpoint": job.init, "method": job.spec.model.seed_layers, "distances": distances}
    storage.write_json(storage.join(job.run, SEED_FILE), values)
