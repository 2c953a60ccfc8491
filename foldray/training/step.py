"""The joint training step: one forward pass through every depth, one loss, one update (arXiv 2505.21237, section 2).

The file is long because everything that one step does, in order, is here: batches, forward, loss, reduction, update.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from foldray.config.corpus import SAMPLE_RATE
from foldray.config.spec import RunSpec
from foldray.config.training import OptimSpec
from foldray.data.epoch import EpochPlan, MicroBatch, samples_at_speed
from foldray.data.manifest import SplitIndex
from foldray.data.stream import Batch, BatchLoader
from foldray.folding.batchnorm import Renorm
from foldray.folding.loss import StepCounts
from foldray.models.families import family_of
from foldray.models.features import output_frames
from foldray.models.fold import set_depths
from foldray.results.metrics import Record
from foldray.runtime.memory import peak_rss
from foldray.training.context import WorkerContext
from foldray.training.job import TrainJob
from foldray.training.lengths import check_masks
from foldray.training.objective import Objective
from foldray.training.parallel import accumulating, gradient_norm, is_sharded, wrap
from foldray.training.schedule import learning_rate, moving_share
from foldray.training.teacher import Teacher, teacher_place


@dataclass(frozen=True)
class ExplodedStep:
    """A step whose gradient norm is over `optim.stop_norm` or not finite; `ids`: the utterances of its batch."""

    epoch: int
    epoch_step: int
    grad_norm: float
    losses: dict[str, dict[str, float]]
    ids: list[str]


class GradientExploded(Exception):  # noqa: N818
    """Raised by every worker at the same step; `signals` are the sums of the workers' signals, as of any step."""

    def __init__(self, step: ExplodedStep, signals: list[float]) -> None:
        super().__init__(f"gradient norm {step.grad_norm} at epoch {step.epoch}, step {step.epoch_step}")
        self.step = step
        self.signals = signals


@dataclass(frozen=True)
class StepResult:
    """Metrics of one optimizer step, and the sums of the workers' signals."""

    metrics: Record
    signals: list[float]


class JointStep:
    """Takes optimizer steps: forward every depth, one joint loss, one update.

    Attributes:
        signals: Numbers of this worker; their sums over all workers come with the next step's losses.
    """

    def __init__(
        self,
        job: TrainJob,
        worker: WorkerContext,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: BatchLoader,
        index: SplitIndex,
        renorm: Renorm | None,
    ) -> None:
        self._spec = job.spec
        self._worker = worker
        self._optimizer = optimizer
        self._loader = loader
        self._index = index
        self._dtype = autocast_dtype(job.spec, worker.device)
        self._unwrapped = model
        shortest = samples_at_speed(index.num_samples.min(keepdims=True), max(job.spec.augment.speeds))
        check_masks(model, int(self._frames(shortest)[0]))
        place = teacher_place(job.spec)
        teacher = Teacher(place, model, loader.tokenizer, worker.device, self._dtype) if place else None
        self._objective = Objective(job.spec, model, teacher)
        self._options = {"use_cache": False} if family_of(model).seq2seq else {}
        self._model = wrap(model, worker, find_unused=self._objective.may_skip_parts)
        self._renorm = renorm
        self.signals: Sequence[float] = ()
        self._ended: float | None = None

    def run_epoch(self, plan: EpochPlan, first: int, step: int) -> Iterator[StepResult]:
        """Take the steps of an epoch.

        Args:
            plan: The batches of the epoch.
            first: The step of the epoch to start with.
            step: Optimizer steps of the run so far.

        Raises:
            GradientExploded: Before the update of a step whose gradient must not reach the weights.
        """
        batches = self._loader.share_ahead(plan, self._worker.rank, self._worker.world, first)
        for epoch_step in range(first, len(plan)):
            progress = _progress(self._spec.optim, plan.epoch, epoch_step, len(plan), step)
            yield self._step(plan, epoch_step, batches, progress)
            step += 1

    def _step(self, plan: EpochPlan, epoch_step: int, batches: Iterator[Batch], progress: float) -> StepResult:
        # A step begins where the one before ended: `seconds` includes checkpoints and validations in between.
        began = self._ended or time.perf_counter()
        micro_batches = plan.step(epoch_step)
        depths = self._objective.draw_depths(plan.epoch, epoch_step)
        set_depths(self._model, depths)
        self._model.train()
        if self._renorm:
            self._renorm.share = moving_share(progress, self._spec.optim)
        sums_LP, data_wait = self._accumulate(plan, epoch_step, len(depths), batches, progress)
        norm = float(gradient_norm(self._model, self._spec.optim.clip_norm))
        sums_LP, signals = self._all_reduce(sums_LP)
        losses = {
            part: dict(zip(map(str, depths), values, strict=True))
            for part, values in zip(self._objective.parts, sums_LP.tolist(), strict=True)
        }
        if not norm < self._spec.optim.stop_norm:
            ids = [self._index.ids[int(row)].as_py() for batch in micro_batches for row in batch]
            raise GradientExploded(ExplodedStep(plan.epoch, epoch_step, norm, losses, ids), signals)
        rates = self._update(progress)
        self._ended = time.perf_counter()
        speed = {"seconds": self._ended - began, "data_wait": data_wait, **_audio(plan, micro_batches)}
        figures = {
            "grad_norm": norm,
            **rates,
            "progress": progress,
            **speed,
            "memory": peak_memory(self._worker.device),
        }
        return StepResult({**losses, **figures}, signals)

    def _accumulate(
        self, plan: EpochPlan, epoch_step: int, num_depths: int, batches: Iterator[Batch], progress: float
    ) -> tuple[Tensor, float]:
        """Add up the gradients of this worker's micro-batches; return their losses (L, P) and seconds without data."""
        micro_batches = plan.step(epoch_step)
        counts = self._counts(plan, micro_batches)
        sums_LP = torch.zeros(len(self._objective.parts), num_depths, device=self._worker.device)
        data_wait = 0.0
        turns = self._turns(len(micro_batches))
        for i, (number, weight) in enumerate(turns):
            if i == 0 or weight:
                requested = time.perf_counter()
                batch = next(batches)
                data_wait += time.perf_counter() - requested
            seed_everything(self._spec.seed, plan.epoch, epoch_step * self._spec.batch.per_step + number)
            moved, last = batch.to(self._worker.device), i + 1 == len(turns)
            sums_LP += self._backward(moved, counts, progress, weight, last=last)
        return sums_LP, data_wait

    def _update(self, progress: float) -> Record:
        """Update the weights and the norms' statistics; return the learning rates."""
        rates = self._set_rates(progress)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._renorm:
            self._renorm.move(dist.all_reduce if self._worker.world > 1 else None)
        return rates

    def _turns(self, micro_batches: int) -> list[tuple[int, float]]:
        """Return the micro-batches that this worker runs in a step, with their weights in the loss.

        A worker without one runs a micro-batch at weight zero: the others wait for its gradients. With FSDP2 every
        pass is collective, so all workers run equally many.
        """
        mine = [(number, 1.0) for number in range(self._worker.rank, micro_batches, self._worker.world)]
        wanted = -(-micro_batches // self._worker.world) if is_sharded(self._model) else 1
        return mine + [(0, 0.0)] * (wanted - len(mine))

    def _all_reduce(self, sums_LP: Tensor) -> tuple[Tensor, list[float]]:
        """Sum the losses and signals over all workers, in one collective."""
        everything = torch.cat([sums_LP.flatten(), torch.tensor([*self.signals], device=sums_LP.device)])
        if self._worker.world > 1:
            dist.all_reduce(everything)
        losses, signals = everything.split([sums_LP.numel(), len(self.signals)])
        return losses.view_as(sums_LP), signals.tolist()

    def _set_rates(self, progress: float) -> Record:
        """Set the learning rate of every parameter group; return them as metrics."""
        rate = self._spec.optim.lr * learning_rate(progress, self._spec.optim)
        rates = {"lr": rate}
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["share"]
            if group["share"] != 1:
                rates[f"lr_{group['part']}"] = group["lr"]
        return rates

    def _counts(self, plan: EpochPlan, batches: list[MicroBatch]) -> StepCounts:
        members = np.concatenate(batches)
        frames = self._frames(plan.num_samples[members])
        return StepCounts(int(self._index.num_labels[members].sum()), int(frames.sum()), len(members))

    def _frames(self, num_samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the output frames of each utterance, computed once for each length."""
        lengths, which = np.unique(num_samples, return_inverse=True)
        return np.array(output_frames(self._unwrapped, lengths.tolist()), dtype=np.int64)[which]

    def _backward(self, batch: Batch, counts: StepCounts, progress: float, weight: float, *, last: bool) -> Tensor:
        """Add one micro-batch's gradients; return its share of the losses, (L, P)."""
        renormed = self._renorm.observing(batch.frames_B, weight) if self._renorm else nullcontext()
        with accumulating(self._model, last=last), renormed:
            with torch.autocast(self._worker.device.type, self._dtype, enabled=self._dtype is not None):
                output = self._model(**batch.inputs, **self._options)
            total, parts_LP = self._objective(output, batch, counts, progress)
            # Gradients are averaged over the workers; the loss is already the step's share.
            (total * weight * self._worker.world).backward()
        return parts_LP * weight


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: on its GPU, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_rss()


def _audio(plan: EpochPlan, batches: list[MicroBatch]) -> Record:
    samples = [plan.num_samples[batch] for batch in batches]
    audio = sum(int(each.sum()) for each in samples)
    padded = sum(int(each.max()) * len(each) for each in samples)
    return {"audio_seconds": audio / SAMPLE_RATE, "padding": 1 - audio / padded}


def autocast_dtype(spec: RunSpec, device: torch.device) -> torch.dtype | None:
    """Return bfloat16, or None for float32. `auto`: bfloat16 if the device multiplies it natively."""
    if spec.precision == "auto":
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        )
        return torch.bfloat16 if native else None
    return torch.bfloat16 if spec.precision == "bfloat16" else None


def _progress(optim: OptimSpec, epoch: int, epoch_step: int, epoch_steps: int, step: int) -> float:
    """Return the share of the run that is done, 0 to 1."""
    if optim.steps is not None:
        return step / optim.steps
    assert optim.epochs is not None
    return (epoch + epoch_step / epoch_steps) / optim.epochs


def seed_everything(seed: int, epoch: int, micro_batch: int) -> None:
    """Seed the random state of one micro-batch: dropout draws from torch, transformers' SpecAugment from numpy."""
    words: Any = np.random.SeedSequence([seed, epoch, micro_batch]).generate_state(1)
    value = int(words[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
