"""The unfolding cycle: forward every depth, one joint loss, one update (arXiv 2505.21237, section 2)."""

import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foldray.data.epoch import EpochPlan, MicroBatch, samples_at_speed
from foldray.data.manifest import SplitIndex
from foldray.data.stream import Batch, BatchLoader
from foldray.errors import UserError
from foldray.folding.loss import StepCounts
from foldray.models import output_frames, set_depths
from foldray.results.metrics import Record
from foldray.spec import SAMPLE_RATE, OptimSpec, RunSpec
from foldray.training.job import TrainJob, Worker
from foldray.training.objective import Objective
from foldray.training.schedule import learning_rate


class Cycle:
    """Unfolding cycles: forward every depth, one joint loss, one update."""

    def __init__(
        self,
        job: TrainJob,
        worker: Worker,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: BatchLoader,
        index: SplitIndex,
    ) -> None:
        self._spec = job.spec
        self._worker = worker
        self._optimizer = optimizer
        self._loader = loader
        self._index = index
        self._dtype = autocast_dtype(job.spec, worker.device)
        self._unwrapped = model
        shortest = samples_at_speed(index.num_samples.min(keepdims=True), max(job.spec.augment.speeds))
        _check_masks(model, int(self._frames(shortest)[0]))
        self._objective = Objective(job.spec, model)
        unused = self._objective.may_skip_parts
        ddp = partial(DistributedDataParallel, broadcast_buffers=False, find_unused_parameters=unused)
        self._model = ddp(model) if worker.world > 1 else model

    def run_epoch(self, plan: EpochPlan, first: int, step: int) -> Iterator[tuple[int, Record]]:
        """Run the steps from `first` on; yields each one's number in the epoch and its metrics."""
        batches = self._loader.share_ahead(plan, self._worker.rank, self._worker.world, first)
        for epoch_step in range(first, len(plan)):
            progress = _progress(self._spec.optim, plan.epoch, epoch_step, len(plan), step)
            yield epoch_step, self._step(plan, epoch_step, batches, progress)
            step += 1

    def _step(self, plan: EpochPlan, epoch_step: int, batches: Iterator[Batch], progress: float) -> Record:
        began = time.perf_counter()
        epoch, whole = plan.epoch, plan.step(epoch_step)
        counts = self._counts(plan, whole)
        data_wait = 0.0
        numbers = range(self._worker.rank, len(whole), self._worker.world) or [0]
        idle = self._worker.rank >= len(whole)
        rate = self._spec.optim.lr * learning_rate(progress, self._spec.optim.warmup, self._spec.optim.final_lr)
        depths = self._objective.draw_depths(epoch, epoch_step)
        set_depths(self._model, depths)
        sums_LP = torch.zeros(len(self._objective.parts), len(depths), device=self._worker.device)
        self._model.train()
        for i, number in enumerate(numbers):
            asked = time.perf_counter()
            batch = next(batches)
            data_wait += time.perf_counter() - asked
            seed_everything(self._spec.seed, epoch, epoch_step * self._spec.batch.per_step + number)
            last = i + 1 == len(numbers)
            sums_LP += self._backward(
                batch.to(self._worker.device), counts, progress, 0.0 if idle else 1.0, synchronise=last
            )
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._spec.optim.clip_norm)
        if not torch.isfinite(norm):
            ids = [self._index.ids[int(position)].as_py() for batch in whole for position in batch]
            raise FloatingPointError(
                f"the gradient is not finite at epoch {epoch}, step {epoch_step}; utterances: {ids}"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._worker.world > 1:
            dist.all_reduce(sums_LP)
        losses = {
            part: dict(zip(map(str, depths), values, strict=True))
            for part, values in zip(self._objective.parts, sums_LP.tolist(), strict=True)
        }
        seconds = time.perf_counter() - began
        speed = {"seconds": seconds, "data_wait": data_wait, **_heard(plan, whole)}
        return {**losses, "grad_norm": float(norm), "lr": rate, "progress": progress, **speed}

    def _counts(self, plan: EpochPlan, batches: list[MicroBatch]) -> StepCounts:
        members = np.concatenate(batches)
        frames = self._frames(plan.num_samples[members])
        return StepCounts(int(self._index.num_labels[members].sum()), int(frames.sum()), len(members))

    def _frames(self, num_samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Output frames of each utterance; lengths repeat, so each is worked out once."""
        lengths, which = np.unique(num_samples, return_inverse=True)
        return np.array(output_frames(self._unwrapped, lengths.tolist()), dtype=np.int64)[which]

    def _backward(
        self, batch: Batch, counts: StepCounts, progress: float, weight: float, *, synchronise: bool
    ) -> Tensor:
        """Add one micro-batch's gradients; returns its share of the parts of the loss, (L, P)."""
        ddp: Any = self._model
        waiting = isinstance(ddp, DistributedDataParallel) and not synchronise
        with ddp.no_sync() if waiting else nullcontext():
            with torch.autocast(self._worker.device.type, self._dtype, enabled=self._dtype is not None):
                output = ddp(**batch.inputs)
            total, parts_LP = self._objective(output, batch, counts, progress)
            # DistributedDataParallel averages over workers; the loss is already the step's share.
            (total * weight * self._worker.world).backward()
        return parts_LP * weight


def _heard(plan: EpochPlan, batches: list[MicroBatch]) -> Record:
    samples = [plan.num_samples[batch] for batch in batches]
    heard = sum(int(each.sum()) for each in samples)
    padded = sum(int(each.max()) * len(each) for each in samples)
    return {"audio_seconds": heard / SAMPLE_RATE, "padding": 1 - heard / padded}


def _check_masks(model: nn.Module, fewest_frames: int) -> None:
    """transformers' own SpecAugment fails on a batch shorter than one mask; say so before it does."""
    config: Any = model.config
    masks = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0.0) > 0
    if masks and config.mask_time_length > fewest_frames:
        raise UserError(
            "model.config.mask_time_length",
            f"{config.mask_time_length} frames are more than the shortest utterance has ({fewest_frames}); "
            "lower it, or raise corpus.min_seconds",
        )


def autocast_dtype(spec: RunSpec, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for float32; 'auto' asks whether the device multiplies bfloat16 natively."""
    if spec.precision == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if device.type == "cuda"
            else torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        )
        return torch.bfloat16 if native else None
    return torch.bfloat16 if spec.precision == "bfloat16" else None


def _progress(optim: OptimSpec, epoch: int, epoch_step: int, epoch_steps: int, step: int) -> float:
    """Share of the run that lies behind, 0 to 1."""
    if optim.steps is not None:
        return step / optim.steps
    assert optim.epochs is not None
    return (epoch + epoch_step / epoch_steps) / optim.epochs


def seed_everything(seed: int, epoch: int, micro_batch: int) -> None:
    """Random state of one micro-batch: dropout draws from torch, transformers' SpecAugment from numpy."""
    words: Any = np.random.SeedSequence([seed, epoch, micro_batch]).generate_state(1)
    value = int(words[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
