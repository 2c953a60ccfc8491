"""Training state: model, optimizer and moving average, from initial weights or from a checkpoint."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.data.manifest import SplitIndex
from foldray.data.stream import Batch, BatchLoader
from foldray.errors import UserError
from foldray.folding.batchnorm import Renorm
from foldray.models.from_checkpoint import initial_distances, load_folded
from foldray.models.save_load import describe_model
from foldray.models.stock import write_random_checkpoint
from foldray.models.tokenizer import Tokenizer
from foldray.models.windows import USUAL_SECONDS
from foldray.storage.layout import CONFIG_FILE, ModelFolder, Run
from foldray.training.checkpoint import read_checkpoint, restore_optimizer
from foldray.training.context import WorkerContext
from foldray.training.cursor import Cursor, plan_of
from foldray.training.fencing import Attempt, claim_group
from foldray.training.final_model import MovingAverage
from foldray.training.job import RunStopped, TrainJob
from foldray.training.optimizer import make_optimizer
from foldray.training.parallel import shard
from foldray.training.run_folder import checkpoint_uri, whole_checkpoints
from foldray.training.schedule import freeze_front


@dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and where it starts.

    Attributes:
        model: The folded model, on this worker's device.
        optimizer: Its optimizer.
        average: Moving average of its weights.
        loader: Loads this worker's batches.
        start: The step to start with.
        model_files: Configuration files that make a checkpoint a model folder.
        renorm: Updates the norms' statistics of a model from scratch; None for a pretrained one, whose statistics
            stay fixed.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    average: MovingAverage
    loader: BatchLoader
    start: Cursor
    model_files: dict[str, bytes]
    renorm: Renorm | None


def open_state(
    job: TrainJob, worker: WorkerContext, tokenizer: Tokenizer, index: SplitIndex, checkpoint: str | None
) -> TrainState:
    """Return the state of a checkpoint or, without one, of the run's initial weights. Collective."""
    spec = job.spec
    saved = read_checkpoint(checkpoint) if checkpoint else None
    if not saved and spec.model.checkpoint is None:
        _write_initial_weights(job, worker, tokenizer)
    model, sources = (saved.model, []) if saved else build_model(job, tokenizer)
    nn.Module.to(model, worker.device)
    if spec.optim.freeze_front:
        freeze_front(model)
    setattr(model.config, USUAL_SECONDS, round(float(np.percentile(index.num_samples, 95)) / SAMPLE_RATE, 1))
    model_files = describe_model(model, tokenizer)
    loader = BatchLoader(index, model, tokenizer, spec.augment, spec.seed, spec.scale.loader_threads)
    if sources and worker.rank == 0:
        batch = loader.load(plan_of(spec, index, 0).batch(0), epoch=0)
        _report_distances(job, worker, model, sources, batch)
    del sources  # as large as the model
    shard(model, worker, spec.scale)
    renorm = _renorm(model, worker) if spec.model.checkpoint is None else None
    optimizer = make_optimizer(model, spec.optim, worker)
    if saved:
        restore_optimizer(model, optimizer, saved.optimizer)
    average = MovingAverage(model, spec.optim.ema, saved.averaged if saved else {})
    start = saved.cursor if saved else Cursor()
    return TrainState(model, optimizer, average, loader, start, model_files, renorm)


def _renorm(model: PreTrainedModel, worker: WorkerContext) -> Renorm:
    """Return what updates the norms' statistics. Raises UserError for a model whose frames it can't count."""
    has_norms = any(name.endswith("num_batches_tracked") for name, _ in model.named_buffers())
    if has_norms and getattr(model.config, "add_adapter", False):
        # The batch has the lengths after the adapter; the norms are before it.
        raise UserError("model.config.add_adapter", "needs pretrained weights; leave it out from scratch")
    return Renorm(model, worker.device)


def claim(job: TrainJob, worker: WorkerContext) -> tuple[Attempt, str | None]:
    """Claim the run; return this attempt and the URI of the checkpoint to resume from. Rank 0 decides. Collective.

    Raises:
        RunStopped: A newer submission owns the run.
    """
    numbers = [0] * 5
    stopped: RunStopped | None = None
    if worker.rank == 0:
        try:
            attempt = claim_group(job.run, job.submission)
            found = whole_checkpoints(job.run)
            newest = [found[-1].step, *vars(found[-1].attempt).values()] if found else [0, 0, 0]
            numbers = [attempt.submission, attempt.group, *newest]
        except RunStopped as error:
            stopped = error
    submission, group, step, *of_checkpoint = worker.broadcast(numbers)
    if not submission:
        raise stopped or RunStopped(job.run, "was taken over by a newer attempt")
    if not step:
        return Attempt(submission, group), None
    return Attempt(submission, group), checkpoint_uri(job.run, step, Attempt(*of_checkpoint))


def _write_initial_weights(job: TrainJob, worker: WorkerContext, tokenizer: Tokenizer) -> None:
    """Write a random stock checkpoint for a run from scratch, if it is missing. Collective."""
    if worker.rank == 0 and not storage.exists(ModelFolder(job.init).file(CONFIG_FILE)):
        with tempfile.TemporaryDirectory() as folder:
            write_random_checkpoint(job.spec.model, job.spec.fold.num_layers, tokenizer, job.spec.seed, Path(folder))
            storage.upload(Path(folder), job.init, last=CONFIG_FILE)
    worker.broadcast([0])  # the others wait for the files


def build_model(job: TrainJob, tokenizer: Tokenizer) -> tuple[PreTrainedModel, list[nn.Module]]:
    """Return the folded model with its initial weights, equal in every process, and a deeper checkpoint's layers."""
    spec = job.spec
    planned = spec.planned_model()
    model, sources, _ = load_folded(spec.model, job.init, planned.plan, tokenizer, spec.seed, planned.decoder)
    return model, sources


def _report_distances(
    job: TrainJob, worker: WorkerContext, model: PreTrainedModel, sources: list[nn.Module], batch: Batch
) -> None:
    """Write `seed.json`: the distance of each depth to the checkpoint that it was created from, on one batch."""
    moved = batch.to(worker.device)
    layers = [layer.to(worker.device) for layer in sources]
    distances = initial_distances(model, layers, moved.inputs, moved.frames_B)
    stock = job.spec.model
    chosen = {"layers": stock.layers, "decoder_layers": stock.decoder_layers}
    method = ", ".join([stock.seed_layers, *(f"{name} {list(layers)}" for name, layers in chosen.items() if layers)])
    values = {"checkpoint": job.init, "method": method, "distances": distances}
    storage.write_json(Run(job.run).seed_distances, values)
