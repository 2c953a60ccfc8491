"""The training loop: epochs of unfolding cycles, validation, checkpoints. The same in one process or in many.

Everything that could differ between an uninterrupted run and a resumed one is a function of the
position: the batches (epoch plan), the learning rate, and the random state, which is set anew
before every micro-batch. What one worker alone knows (a write that failed, a newer attempt, time to
ask for preemptions) travels with the losses of every step, so that all act on it at the same one.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from foldray import storage
from foldray.data.manifest import read_index, read_manifest
from foldray.errors import UserError
from foldray.models.families import family_of
from foldray.results.metrics import Record, read_metrics
from foldray.storage.layout import CheckpointFolder, Run
from foldray.training.checkpoint import take_snapshot, whole_checkpoints
from foldray.training.checkpointer import Checkpointer, is_superseded
from foldray.training.context import Stopped, Surroundings, TrainJob, Worker
from foldray.training.cursor import Position, is_at_end, is_validated, plan_of, steps_to_average
from foldray.training.cycle import Cycle, Exploded
from foldray.training.fencing import Attempt
from foldray.training.state import claim, open_state
from foldray.training.validation import Validations, known_scores

_log = logging.getLogger("foldray.training")

ASK_SECONDS = 5.0
"""How often workers ask together whether a preemption is announced; each asking is a round trip to an actor."""

POLL_SECONDS = 0.2
"""How often workers look together whether a validation is done."""

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
        self.attempt, checkpoint = claim(job, worker)
        self.state = open_state(job, worker, manifest.tokenizer, self.index, checkpoint)
        state = self.state
        self.cycle = Cycle(job, worker, state.model, state.optimizer, state.loader, self.index, state.renorm)
        scored = bool(manifest.rows_by_split.get("valid")) and family_of(self.state.model).ctc
        self.validate = around.validate if scored else None
        known = known_scores(read_metrics(job.run), self.state.start.step) if worker.rank == 0 else {}
        self.validations = Validations(self.spec, known, around.on_record)
        described = self.state.described
        self.checkpointer = (
            Checkpointer(job, self.attempt, described, self._kept_steps, self._on_whole) if worker.rank == 0 else None
        )
        self.records: list[Record] = []
        self.announced: set[str] = set()
        self.asked = time.monotonic()

    # --- The run ---

    def run(self) -> Trained:
        try:
            self._validate_again()
            position = self._train()
            self._act_on(self._signals_at_end())
            self._settle_validations()
            steps = self._final_steps(position)
            return Trained(self.state.model, position.step, self.state.start.step, steps, self.attempt)
        finally:
            if self.checkpointer:
                self.checkpointer.close()

    def _train(self) -> Position:
        position = self.state.start
        self.cycle.signals = self._signals()
        over = self._is_over(position)
        while not over:
            plan = plan_of(self.spec, self.index, position.epoch)
            try:
                for cycled in self.cycle.run_epoch(plan, position.epoch_step, position.step):
                    record = {"step": position.step + 1, "epoch": position.epoch, **cycled.record}
                    position = position.after(len(plan))
                    over = self._after_step(position, record, cycled.signals)
                    if over:
                        break
            except Exploded as exploded:
                self._act_on(exploded.signals)
                self._stop_exploded(position, exploded.facts)
        return position

    def _after_step(self, position: Position, record: Record, signals: list[float]) -> bool:
        """Everything between two steps; returns whether the run is over."""
        self.state.average.update()
        self.records.append(record)
        self._act_on(signals)
        preempted = self._is_preempted(signals)
        if preempted:  # first of all: the node is about to go
            self._save(position)
            if self.checkpointer:
                self.checkpointer.settle()
        validated = bool(self.validate) and is_validated(self.spec, position)
        if validated:
            record["validation_wait"] = self._settle_validations()
        over = self._is_over(position)
        if not preempted and (validated or over or position.step % self.spec.checkpoint.every_steps == 0):
            self._save(position)
        self.around.on_record(record)
        self.cycle.signals = self._signals()
        return over

    def _is_over(self, position: Position) -> bool:
        if is_at_end(self.spec, position):
            return True
        if self.spec.valid.patience is None or not self.validate or not is_validated(self.spec, position):
            return False
        over = self.validations.is_over(position.step) if self.worker.rank == 0 else False
        return bool(self.worker.from_first([over])[0])

    # --- Checkpoints ---

    def _save(self, position: Position) -> None:
        began = time.perf_counter()
        first = self.worker.rank == 0
        if self.checkpointer:
            self.checkpointer.settle()  # before the copy: one is enough to hold
        kept = take_snapshot(self.state.model, self.state.optimizer, self.state.average.weights, first=first)
        if self.checkpointer and kept:
            self.checkpointer.save(vars(position), kept, self.records, began)
        self.records = []

    def _kept_steps(self, step: int) -> set[int]:
        return self.validations.kept_steps() | set(steps_to_average(self.spec, step))

    def _final_steps(self, position: Position) -> list[int]:
        """The steps of the checkpoints that the final model is made of; the first worker knows."""
        if self.spec.valid.final != "best" or not self.checkpointer:
            return steps_to_average(self.spec, position.step)
        best = self.validations.best_step({found.step for found in whole_checkpoints(self.job.run)})
        if best is None:
            _log.warning("no checkpoint has a validation score; the last one becomes the final model")
        return steps_to_average(self.spec, position.step) if best is None else [best]

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

    def _stop_exploded(self, position: Position, facts: dict[str, Any]) -> None:
        """Write down what exploded, and stop before it reaches the weights."""
        file = Run(self.job.run).exploded(position.step + 1)
        if self.checkpointer:
            if failure := self.checkpointer.settle():
                raise failure
            self.checkpointer.write_records(self.records)
            storage.write_json(file, {"step": position.step + 1, **facts})
        norm, limit = facts["grad_norm"], self.spec.optim.stop_norm
        reason = f"is {norm:.3g}, over optim.stop_norm={limit:g}" if norm >= limit else "is not finite"
        raise Stopped(
            "training",
            f"the gradient of step {position.step + 1} {reason}; the {len(facts['ids'])} utterances of its batch are "
            f"in {file}, the newest checkpoint is from before it. Lower optim.lr, lengthen optim.warmup, or "
            "look at these utterances",
        )

    # --- Validation ---

    def _settle_validations(self) -> float:
        """Take in the scores that are due; they had all the time since the validation before. Returns seconds waited.

        All workers look again and again together: one that waited alone would keep the others in an exchange
        until it is given up.
        """
        began = time.perf_counter()
        while not self.worker.from_first([self._is_scored()])[0]:
            time.sleep(POLL_SECONDS)
        if self.worker.rank == 0:
            self.validations.settle()
        return time.perf_counter() - began

    def _is_scored(self) -> bool:
        """Whether the first worker waits for no score any longer."""
        return not self.checkpointer or (self.checkpointer.is_idle and not self.validations.are_waited_for())

    def _on_whole(self, position: dict[str, int], uri: str) -> None:
        """Begin to score a checkpoint that is in the store, where it is one that is scored."""
        if not self.validate or not is_validated(self.spec, Position(**position)):
            return
        if not self.validations.are_done():
            _log.warning("step %d is not scored: the validation before it is not done", position["step"])
            return
        try:
            self.validations.begin(position["step"], self.validate(position["step"], uri))
        except Exception as error:  # the checkpoint is whole all the same
            _log.warning("the validation of step %d could not begin: %r", position["step"], error)

    def _validate_again(self) -> None:
        """Score the checkpoints that a killed attempt began to score and did not finish."""
        if not self.checkpointer or not self.validate:
            return
        scored = self.validations.scores()
        for found in whole_checkpoints(self.job.run):
            position = storage.read_json(CheckpointFolder(found.uri).state)
            if found.step not in scored and is_validated(self.spec, Position(**position)):
                self._on_whole(position, found.uri)
                if found.step < self.state.start.step:
                    # Whether the run is over where it begins again depends on this one.
                    while self.validations.are_waited_for():
                        time.sleep(POLL_SECONDS)
                    self.validations.settle()
