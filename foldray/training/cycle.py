"""The unfolding cycle: forward every depth, one joint loss, one update (arXiv 2505.21237, section 2)."""

import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foldray.data.epoch import EpochPlan, MicroBatch
from foldray.data.manifest import SplitIndex
from foldray.data.stream import Batch, BatchLoader
from foldray.errors import UserError
from foldray.folding.loss import StepCounts, joint_loss
from foldray.models import output_frames
from foldray.results.metrics import Record
from foldray.spec import SAMPLE_RATE, OptimSpec, RunSpec
from foldray.training.job import TrainJob, Worker
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
        self._paths = len(job.spec.fold.depths)
        self._dtype = autocast_dtype(job.spec, worker.device)
        # The frames of every utterance once, not at every step.
        self._frames = np.array(output_frames(model, index.num_samples.tolist()))
        _check_masks(model, int(self._frames.min()))
        self._model = DistributedDataParallel(model, broadcast_buffers=False) if worker.world > 1 else model

    def run_epoch(self, plan: EpochPlan, epoch: int, first: int, step: int) -> Iterator[tuple[int, Record]]:
        """Run the steps from `first` on; yields each one's number in the epoch and its metrics."""
        mine = [self._share(batches) for batches in plan.steps]
        batches = self._loader.ahead((b for share in mine[first:] for b in share), epoch)
        for epoch_step in range(first, len(plan.steps)):
            progress = _progress(self._spec.optim, epoch, epoch_step, len(plan.steps), step)
            yield epoch_step, self._step(plan, epoch, epoch_step, batches, progress)
            step += 1

    def _share(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """This rank's micro-batches of a step; the first one, at weight zero, where it would have none."""
        return batches[self._worker.rank :: self._worker.world] or batches[:1]

    def _step(self, plan: EpochPlan, epoch: int, epoch_step: int, batches: Iterator[Batch], progress: float) -> Record:
        began = time.perf_counter()
        whole = plan.steps[epoch_step]
        counts = self._counts(whole)
        numbers = range(self._worker.rank, len(whole), self._worker.world) or [0]
        idle = self._worker.rank >= len(whole)
        rate = self._spec.optim.lr * learning_rate(progress, self._spec.optim.warmup, self._spec.optim.final_lr)
        sums_2P = torch.zeros(2, self._paths, device=self._worker.device)
        self._model.train()
        for i, number in enumerate(numbers):
            waited = next(batches).to(self._worker.device)
            seed_everything(self._spec.seed, epoch, epoch_step * self._spec.batch.per_step + number)
            last = i + 1 == len(numbers)
            sums_2P += self._backward(waited, counts, 0.0 if idle else 1.0, synchronise=last)
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._spec.optim.clip_norm)
        if not torch.isfinite(norm):
            ids = [self._index.ids[position] for batch in whole for position in batch]
            raise FloatingPointError(
                f"the gradient is not finite at epoch {epoch}, step {epoch_step}; utterances: {ids}"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._worker.world > 1:
            dist.all_reduce(sums_2P)
        return self._record(sums_2P, whole, rate, float(norm), progress, time.perf_counter() - began)

    def _counts(self, batches: list[MicroBatch]) -> StepCounts:
        members = np.concatenate(batches)
        return StepCounts(int(self._index.num_labels[members].sum()), int(self._frames[members].sum()))

    def _backward(self, batch: Batch, counts: StepCounts, weight: float, *, synchronise: bool) -> Tensor:
        """Add one micro-batch's gradients; returns its share of the losses, (2, P): CTC and KL."""
        spec = self._spec.loss
        ddp: Any = self._model
        waiting = isinstance(ddp, DistributedDataParallel) and not synchronise
        with ddp.no_sync() if waiting else nullcontext():
            with torch.autocast(self._worker.device.type, self._dtype, enabled=self._dtype is not None):
                logits = ddp(**batch.inputs).logits
            loss = joint_loss(
                logits.unflatten(0, (self._paths, -1)),
                batch.frames_B,
                batch.labels_BU,
                batch.num_labels_B,
                counts,
                alpha=spec.alpha,
                beta=spec.beta,
                temperature=spec.temperature,
            )
            # DistributedDataParallel averages over workers; the loss is already the step's share.
            (loss.total * weight * self._worker.world).backward()
        return torch.stack([loss.ctc_P, loss.kl_P]) * weight

    def _record(
        self,
        sums_2P: Tensor,
        batches: list[MicroBatch],
        rate: float,
        norm: float,
        progress: float,
        seconds: float,
    ) -> Record:
        depths = self._spec.fold.depths
        ctc_P, kl_P = sums_2P.tolist()
        samples = [self._index.num_samples[batch] for batch in batches]
        padded = sum(int(each.max()) * len(each) for each in samples)
        return {
            "ctc": dict(zip(map(str, depths), ctc_P, strict=True)),
            "kl": dict(zip(map(str, depths), kl_P, strict=True)),
            "grad_norm": norm,
            "lr": rate,
            "progress": progress,
            "seconds": seconds,
            "audio_seconds": sum(int(each.sum()) for each in samples) / SAMPLE_RATE,
            "padding": 1 - sum(int(each.sum()) for each in samples) / padded,
        }


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
