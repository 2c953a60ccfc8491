"""The training loop: unfolding cycles over planned batches. Runs the same in one process or in many.

Everything that could differ between an uninterrupted run and a resumed one is a function of the
position: the batches (epoch plan), the learning rate, and the random state, which is set anew
before every micro-batch.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from foldray.data.epoch import EpochPlan, MicroBatch, plan_epoch, plan_scoring
from foldray.data.manifest import SplitIndex, read_index, read_manifest
from foldray.data.stream import Batch, BatchLoader
from foldray.folding.loss import StepCounts, ctc_per_path, joint_loss
from foldray.models import fold, output_frames
from foldray.pretrained import LocalFolder, load_seed
from foldray.results.metrics import Record, write_metrics
from foldray.spec import SAMPLE_RATE, OptimSpec, RunSpec
from foldray.storage import is_local
from foldray.training.checkpoint import load_checkpoint, save_checkpoint, whole_checkpoints
from foldray.training.schedule import learning_rate, parameter_groups

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainJob:
    """What every worker gets: the spec, and where run, corpus and initial weights are."""

    spec: RunSpec
    run: str
    corpus: str
    init: str
    attempt: str


@dataclass(frozen=True)
class Worker:
    """This process among the workers of a run."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU


@dataclass(frozen=True)
class Trained:
    """Where the run stood when it began (0 if fresh) and ended, and the folded model."""

    model: PreTrainedModel
    step: int
    resumed_from_step: int


def train_model(job: TrainJob, worker: Worker, on_record: Callable[[Record], None] = lambda record: None) -> Trained:
    """Train to the end of the spec from the newest whole checkpoint. `on_record` sees every step's metrics."""
    spec = job.spec
    manifest = read_manifest(job.corpus)
    train = read_index(job.corpus, manifest, "train")
    model = build_model(job, manifest.vocabulary)
    nn.Module.to(model, worker.device)
    groups = parameter_groups(model, spec.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=spec.optim.lr, betas=spec.optim.betas)
    position = _resume(job, worker, model, optimizer)
    resumed_from = step = position["step"]
    loader = BatchLoader(train, model, manifest.vocabulary, spec.augment, spec.seed)
    cycle = _Cycle(job, worker, model, optimizer, loader, train)
    validate = _Validation(job, worker, model, manifest.vocabulary)
    records: list[Record] = []
    if spec.optim.steps is not None and step >= spec.optim.steps:
        return Trained(model, step, resumed_from)
    for epoch, plan in _epochs(spec, train, position["epoch"]):
        first = position["epoch_step"] if epoch == position["epoch"] else 0
        for epoch_step, record in cycle.run_epoch(plan, epoch, first, step):
            step += 1
            last = epoch_step + 1 == len(plan.steps)
            if last:
                record.update(validate())
            record = {"step": step, "epoch": epoch, **record}
            records.append(record)
            on_record(record)
            done = spec.optim.steps is not None and step >= spec.optim.steps
            if step % spec.checkpoint.every_steps == 0 or done or (last and epoch + 1 == spec.optim.epochs):
                if worker.rank == 0:
                    write_metrics(job.run, job.attempt, records)
                    next_position = {"epoch": epoch + last, "epoch_step": 0 if last else epoch_step + 1}
                    save_checkpoint(job.run, step, next_position, model, optimizer, spec.checkpoint.keep)
                records = []
            if done:
                return Trained(model, step, resumed_from)
    return Trained(model, step, resumed_from)


def build_model(job: TrainJob, vocabulary: list[str]) -> PreTrainedModel:
    """The folded model at its initial weights, the same in every process."""
    spec = job.spec
    with LocalFolder(job.init) if not _is_hub_name(job.init) else nullcontext() as folder:
        source = str(folder.path) if folder else job.init
        model, _ = load_seed(spec.model, source, spec.fold.num_layers, vocabulary, spec.seed)
    return fold(model, spec.fold.plan())


def _is_hub_name(checkpoint: str) -> bool:
    return is_local(checkpoint) and not checkpoint.startswith("/")


def _resume(job: TrainJob, worker: Worker, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Load what rank 0 finds newest, so that all ranks agree."""
    steps = [int(uri.rsplit("-", 1)[1]) for uri in whole_checkpoints(job.run)] if worker.rank == 0 else []
    newest = torch.tensor([steps[-1] if steps else 0], device=worker.device)
    if worker.world > 1:
        dist.broadcast(newest, src=0)
    if not int(newest):
        return {"step": 0, "epoch": 0, "epoch_step": 0}
    return load_checkpoint(f"{job.run}/checkpoints/step-{int(newest):08d}", model, optimizer)


def _epochs(spec: RunSpec, index: SplitIndex, first: int) -> Iterator[tuple[int, EpochPlan]]:
    epoch = first
    while spec.optim.epochs is None or epoch < spec.optim.epochs:
        yield (
            epoch,
            plan_epoch(
                index,
                seed=spec.seed,
                epoch=epoch,
                max_duration=spec.batch.max_duration,
                per_step=spec.batch.per_step,
                shortest_first=epoch < spec.batch.shortest_first,
            ),
        )
        epoch += 1


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


class _Cycle:
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
        self._bare = model
        self._paths = len(job.spec.fold.depths)
        self._dtype = autocast_dtype(job.spec, worker.device)
        # The frames of every utterance once, not at every step.
        self._frames = np.array(output_frames(model, index.num_samples.tolist()))
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
        ids: list[str] = []
        self._model.train()
        for i, number in enumerate(numbers):
            waited = next(batches).to(self._worker.device)
            seed_everything(self._spec.seed, epoch, epoch_step * self._spec.batch.per_step + number)
            last = i + 1 == len(numbers)
            sums_2P += self._backward(waited, counts, 0.0 if idle else 1.0, synchronise=last)
            ids += waited.ids
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._spec.optim.clip_norm)
        if not torch.isfinite(norm):
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


class _Validation:
    """CTC loss per label of every depth on the validation split; nothing where the corpus has none."""

    def __init__(self, job: TrainJob, worker: Worker, model: PreTrainedModel, vocabulary: list[str]) -> None:
        self._job, self._worker, self._model = job, worker, model
        manifest = read_manifest(job.corpus)
        self._batches: list[MicroBatch] = []
        if any(shard.split == "valid" and shard.rows for shard in manifest.shards):
            index = read_index(job.corpus, manifest, "valid")
            self._labels = int(index.num_labels.sum())
            self._batches = plan_scoring(index, job.spec.batch.max_duration)[worker.rank :: worker.world]
            self._loader = BatchLoader(index, model, vocabulary, None, job.spec.seed)
            self._present = True
        else:
            self._present = False

    @torch.no_grad()
    def __call__(self) -> Record:
        if not self._present:
            return {}
        depths = self._job.spec.fold.depths
        total_P = torch.zeros(len(depths), device=self._worker.device)
        self._model.eval()
        for batch in self._loader.ahead(self._batches, epoch=0):
            on_device = batch.to(self._worker.device)
            logits = self._model(**on_device.inputs).logits.float().unflatten(0, (len(depths), -1))
            total_P += ctc_per_path(
                logits.log_softmax(-1),
                on_device.frames_B,
                on_device.labels_BU,
                on_device.num_labels_B,
                blank=0,
            )
        if self._worker.world > 1:
            dist.all_reduce(total_P)
        means = (total_P / self._labels).tolist()
        return {"valid_ctc": dict(zip(map(str, depths), means, strict=True))}


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
