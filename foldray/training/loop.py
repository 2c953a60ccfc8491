"""The training loop: epochs of unfolding cycles, validation, checkpoints. The same in one process or in many.

Everything that could differ between an uninterrupted run and a resumed one is a function of the
position: the batches (epoch plan), the learning rate, and the random state, which is set anew
before every micro-batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.data.epoch import EpochPlan, plan_epoch
from foldray.data.manifest import SplitIndex, read_index, read_manifest
from foldray.data.stream import Batch, BatchLoader
from foldray.data.text import Units
from foldray.model_folder import describe_model
from foldray.results.metrics import Record, write_metrics
from foldray.seeding import initial_distances, load_folded
from foldray.spec import RunSpec
from foldray.training.checkpoint import load_checkpoint, save_checkpoint, whole_checkpoints
from foldray.training.cycle import Cycle
from foldray.training.job import TrainJob, Worker
from foldray.training.schedule import parameter_groups
from foldray.training.validation import Validation

SEED_FILE = "seed.json"


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
    index = read_index(job.corpus, manifest, "train")
    model, sources = build_model(job, manifest.units)
    nn.Module.to(model, worker.device)
    groups = parameter_groups(model, spec.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=spec.optim.lr, betas=spec.optim.betas)
    resumed = _resume(job, worker, model, optimizer)
    loader = BatchLoader(index, model, manifest.units, spec.augment, spec.seed, spec.scale.loader_threads)
    if sources and worker.rank == 0 and not resumed.step:
        first = _plan(spec, index, 0).batch(0)
        _report_distances(job, worker, model, sources, loader.load(first, epoch=0))
    del sources  # as large as the model
    cycle = Cycle(job, worker, model, optimizer, loader, index)
    has_valid = any(shard.split == "valid" and shard.rows for shard in manifest.shards)
    validate = Validation(job, worker, model, manifest) if has_valid else dict
    described = describe_model(model, manifest.units)
    records: list[Record] = []
    position = resumed
    for position, record in _cycles(spec, index, cycle, resumed):
        if position.epoch_step == 0:
            record.update(validate())
        records.append(record)
        on_record(record)
        if position.step % spec.checkpoint.every_steps == 0 or _is_over(spec, position):
            if worker.rank == 0:
                write_metrics(job.run, job.attempt, records)
                save_checkpoint(job.run, vars(position), model, optimizer, described, spec.checkpoint.keep)
            records = []
    return Trained(model, position.step, resumed.step)


@dataclass(frozen=True)
class _Position:
    """What comes next: optimiser steps taken, and the epoch and its step to go on with."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0


def _is_over(spec: RunSpec, position: _Position) -> bool:
    return position.step >= (spec.optim.steps or float("inf")) or position.epoch >= (spec.optim.epochs or float("inf"))


def _cycles(spec: RunSpec, index: SplitIndex, cycle: Cycle, start: _Position) -> Iterator[tuple[_Position, Record]]:
    """Every optimiser step from `start` to the end of the run: the position behind it, and its metrics."""
    position = start
    while not _is_over(spec, position):
        plan = _plan(spec, index, position.epoch)
        for epoch_step, record in cycle.run_epoch(plan, position.epoch_step, position.step):
            done = {"step": position.step + 1, "epoch": position.epoch, **record}
            last = epoch_step + 1 == len(plan)
            position = _Position(position.step + 1, position.epoch + last, 0 if last else epoch_step + 1)
            yield position, done
            if _is_over(spec, position):
                return


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


def _resume(job: TrainJob, worker: Worker, model: nn.Module, optimizer: torch.optim.Optimizer) -> _Position:
    """Load what rank 0 finds newest, so that all ranks agree."""
    steps = [step for step, _ in whole_checkpoints(job.run)] if worker.rank == 0 else []
    newest = torch.tensor([steps[-1] if steps else 0], device=worker.device)
    if worker.world > 1:
        dist.broadcast(newest, src=0)
    if not int(newest):
        return _Position()
    return _Position(**load_checkpoint(job.run, int(newest), model, optimizer))
