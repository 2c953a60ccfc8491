"""The training loop: set up, fit, finish. The same in one process and in many.

Everything that could differ between an uninterrupted run and a resumed one is a function of the cursor: the batches
(epoch plan), the learning rate, and the random state, which is set before every micro-batch.
"""

import logging
import time
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedModel

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.data.manifest import SplitIndex, read_index, read_manifest
from foldray.models.families import family_of
from foldray.models.features import output_frames
from foldray.results.metrics import Record
from foldray.storage.layout import Run
from foldray.training.checkpoint import take_snapshot
from foldray.training.checkpointer import Checkpointer
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.cursor import Cursor, is_at_end, plan_of, steps_to_average
from foldray.training.fencing import Attempt
from foldray.training.job import RunStopped, TrainJob
from foldray.training.run_folder import whole_checkpoints
from foldray.training.signals import WorkerSignals
from foldray.training.state import claim, open_state
from foldray.training.step import ExplodedStep, GradientExploded, JointStep
from foldray.training.validation import Validations

_log = logging.getLogger("foldray.training")


@dataclass(frozen=True)
class TrainedModel:
    """Result of the loop.

    Attributes:
        model: The model, with the weights of the last step.
        step: The last step.
        resumed_from_step: The step that training started from; 0 for a new run.
        final_steps: Steps of the checkpoints whose mean is the final model; right on rank 0 only.
        attempt: This attempt at the run.
    """

    model: PreTrainedModel
    step: int
    resumed_from_step: int
    final_steps: list[int]
    attempt: Attempt


def train_model(job: TrainJob, worker: WorkerContext, hooks: LoopHooks | None = None) -> TrainedModel:
    """Train from the newest complete checkpoint to the end of the spec.

    Args:
        job: What to train.
        worker: This process's place among the workers.
        hooks: Callbacks; default: none, and no validation.

    Raises:
        RunStopped: On every worker, if a newer attempt owns the run or a gradient exploded.
    """
    loop = _TrainingLoop(job, worker, hooks or LoopHooks())
    try:
        cursor = loop.fit()
        return loop.finish(cursor)
    finally:
        loop.close()


class _TrainingLoop:
    """One worker's part in one attempt at a run."""

    def __init__(self, job: TrainJob, worker: WorkerContext, hooks: LoopHooks) -> None:
        self.job, self.worker, self.spec = job, worker, job.spec
        manifest = read_manifest(job.corpus)
        self.index = read_index(job.corpus, manifest, "train")
        self.attempt, checkpoint = claim(job, worker)
        self.state = open_state(job, worker, manifest.tokenizer, self.index, checkpoint)
        model, optimizer, loader = self.state.model, self.state.optimizer, self.state.loader
        self.step = JointStep(job, worker, model, optimizer, loader, self.index, self.state.renorm)
        if not manifest.rows_by_split.get("valid"):
            hooks = replace(hooks, validate=None)
        if worker.rank == 0 and not self.state.start.step and family_of(model).ctc:
            _warn_unlearnable(self.index, model)
        self.hooks = hooks
        self.validations = Validations(job, worker, hooks, self.state.start)
        self.checkpointer: Checkpointer | None = None
        if worker.rank == 0:
            files = self.state.model_files
            self.checkpointer = Checkpointer(job, self.attempt, files, self._kept_steps, self.validations.begin)
        self.signals = WorkerSignals(job.run, worker, hooks, self.checkpointer)
        self.records: list[Record] = []

    def fit(self) -> Cursor:
        """Take steps until the run is over; return the cursor after the last one."""
        if self.checkpointer:
            self.validations.begin_missing()
        cursor = self.state.start
        self.step.signals = self.signals.read()
        over = self._is_over(cursor)
        while not over:
            plan = plan_of(self.spec, self.index, cursor.epoch)
            try:
                for result in self.step.run_epoch(plan, cursor.epoch_step, cursor.step):
                    record = {"step": cursor.step + 1, "epoch": cursor.epoch, **result.metrics}
                    cursor = cursor.after(len(plan))
                    over = self._after_step(cursor, record, result.signals)
                    if over:
                        break
            except GradientExploded as exploded:
                self.signals.raise_failure(exploded.signals)
                self._stop_exploded(cursor, exploded.step)
        return cursor

    def finish(self, cursor: Cursor) -> TrainedModel:
        """Wait for the last checkpoint and validation, and choose the checkpoints of the final model."""
        self.signals.raise_last_failure()
        self.validations.wait(self._is_written)
        steps = self._final_steps(cursor)
        return TrainedModel(self.state.model, cursor.step, self.state.start.step, steps, self.attempt)

    def close(self) -> None:
        """End the checkpoint writer's thread."""
        if self.checkpointer:
            self.checkpointer.close()

    def _after_step(self, cursor: Cursor, record: Record, signals: list[float]) -> bool:
        """Do what comes between two steps: average, checkpoint, validation, metrics. Return whether the run is over."""
        self.state.average.update()
        self.records.append(record)
        self.signals.raise_failure(signals)
        preempted = self.signals.is_preempted(signals)
        if preempted:  # before anything else: the node is about to go
            self._save(cursor)
            if self.checkpointer:
                self.checkpointer.wait()
        validated = self.validations.is_due(cursor)
        if validated:
            record["validation_wait"] = self.validations.wait(self._is_written)
        over = self._is_over(cursor)
        if not preempted and (validated or over or cursor.step % self.spec.checkpoint.every_steps == 0):
            self._save(cursor)
        self.hooks.on_record(record)
        self.step.signals = self.signals.read()
        return over

    def _is_over(self, cursor: Cursor) -> bool:
        return is_at_end(self.spec, cursor) or self.validations.stops_early(cursor)

    def _is_written(self) -> bool:
        return self.checkpointer is None or self.checkpointer.is_idle

    def _save(self, cursor: Cursor) -> None:
        began = time.perf_counter()
        if self.checkpointer:
            self.checkpointer.wait()  # before the next copy: memory for one is enough
        first = self.worker.rank == 0
        snapshot = take_snapshot(self.state.model, self.state.optimizer, self.state.average.weights, first=first)
        if self.checkpointer and snapshot:
            self.checkpointer.save(cursor, snapshot, self.records, began)
        self.records = []

    def _kept_steps(self, step: int) -> set[int]:
        return self.validations.kept_steps() | set(steps_to_average(self.spec, step))

    def _final_steps(self, cursor: Cursor) -> list[int]:
        """Return the steps of the checkpoints whose mean is the final model."""
        last = steps_to_average(self.spec, cursor.step)
        if self.spec.valid.final != "best" or not self.checkpointer:
            return last
        best = self.validations.best_step({found.step for found in whole_checkpoints(self.job.run)})
        if best is None:
            _log.warning("no checkpoint has a validation score; the last one becomes the final model")
        return last if best is None else [best]

    def _stop_exploded(self, cursor: Cursor, exploded: ExplodedStep) -> None:
        """Write the facts of an exploded step to the store, then raise RunStopped."""
        step = cursor.step + 1
        file = Run(self.job.run).exploded(step)
        if self.checkpointer:
            if failure := self.checkpointer.wait():
                raise failure
            self.checkpointer.write_records(self.records)
            storage.write_json(file, {"step": step, **vars(exploded)})
        norm, limit = exploded.grad_norm, self.spec.optim.stop_norm
        reason = f"is {norm:.3g}, over optim.stop_norm={limit:g}" if norm >= limit else "is not finite"
        raise RunStopped(
            "training",
            f"the gradient of step {step} {reason}; the {len(exploded.ids)} utterances of its batch are "
            f"in {file}, the newest checkpoint is from before it. Lower optim.lr, lengthen optim.warmup, or "
            "look at these utterances",
        )


def _warn_unlearnable(index: SplitIndex, model: PreTrainedModel) -> None:
    """Warn about training utterances with fewer frames than labels in this model; CTC ignores them."""
    lengths, which = np.unique(index.num_samples, return_inverse=True)
    frames = np.array(output_frames(model, lengths.tolist()))[which]
    count = int((index.num_labels + index.num_repeats > frames).sum())
    if count:
        seconds = lengths[-1] / SAMPLE_RATE / max(1, int(frames.max()))
        _log.warning(
            "%d of %d training utterances have more labels than frames and teach nothing; "
            "corpus.frame_seconds=%.2g would set them aside",
            *(count, len(index), seconds),
        )
