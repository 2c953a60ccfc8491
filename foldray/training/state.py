"""What is trained, and what goes on: the model, its optimiser and its average, from initial weights or a checkpoint."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.data.manifest import SplitIndex
from foldray.data.stream import Batch, BatchLoader
from foldray.errors import UserError
from foldray.folding.batchnorm import Renorm
from foldray.models.from_checkpoint import initial_distances, load_folded
from foldray.models.save_load import describe_model
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import Run
from foldray.training.checkpoint import checkpoint_uri, read_checkpoint, restore_optimizer, whole_checkpoints
from foldray.training.context import Stopped, TrainJob, Worker
from foldray.training.cursor import Position, plan_of
from foldray.training.fencing import Attempt, claim_group
from foldray.training.final_model import MovingAverage
from foldray.training.optimizer import make_optimizer
from foldray.training.parallel import shard
from foldray.training.schedule import freeze_front


@dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and where it starts; described: files that make a checkpoint a model folder;
    renorm: of a model from scratch; loaded statistics stay as they are."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    average: MovingAverage
    loader: BatchLoader
    start: Position
    described: dict[str, bytes]
    renorm: Renorm | None


def open_state(
    job: TrainJob, worker: Worker, tokenizer: Tokenizer, index: SplitIndex, checkpoint: str | None
) -> TrainState:
    """The state of a checkpoint, which needs nothing beside it, or of the run's initial weights."""
    spec = job.spec
    saved = read_checkpoint(checkpoint) if checkpoint else None
    model, sources = (saved.model, []) if saved else build_model(job, tokenizer)
    nn.Module.to(model, worker.device)
    if spec.optim.freeze_front:
        freeze_front(model)
    described = describe_model(model, tokenizer)
    loader = BatchLoader(index, model, tokenizer, spec.augment, spec.seed, spec.scale.loader_threads)
    if sources and worker.rank == 0:
        batch = loader.load(plan_of(spec, index, 0).batch(0), epoch=0)
        _report_distances(job, worker, model, sources, batch)
    del sources  # as large as the model
    shard(model, worker, spec.scale)
    renorm = _renorm(model, worker, begins=not saved) if spec.model.checkpoint is None else None
    optimizer = make_optimizer(model, spec.optim, worker)
    if saved:
        restore_optimizer(model, optimizer, saved.optimizer)
    average = MovingAverage(model, spec.optim.ema, saved.averaged if saved else {})
    start = Position(**saved.position) if saved else Position()
    return TrainState(model, optimizer, average, loader, start, described, renorm)


def _renorm(model: PreTrainedModel, worker: Worker, *, begins: bool) -> Renorm | None:
    """What moves the norms' statistics; None in a run that a foldray began which never moved them."""
    counts = [buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    if not begins and not any(map(bool, counts)):
        return None
    if counts and getattr(model.config, "add_adapter", False):
        # Lengths are those behind the adapter, and the norms are before it.
        raise UserError("model.config.add_adapter", "goes with pretrained weights only; leave it out from scratch")
    return Renorm(model, worker.device)


def claim(job: TrainJob, worker: Worker) -> tuple[Attempt, str | None]:
    """This attempt, and the URI of the checkpoint to go on from, as the first worker finds them. Raises Stopped."""
    numbers = [0] * 5
    stopped: Stopped | None = None
    if worker.rank == 0:
        try:
            attempt = claim_group(job.run, job.submission)
            found = whole_checkpoints(job.run)
            newest = [found[-1].step, *vars(found[-1].attempt).values()] if found else [0, 0, 0]
            numbers = [attempt.submission, attempt.group, *newest]
        except Stopped as error:
            stopped = error
    submission, group, step, *of_checkpoint = worker.from_first(numbers)
    if not submission:
        raise stopped or Stopped(job.run, "was taken over by a newer attempt")
    if not step:
        return Attempt(submission, group), None
    return Attempt(submission, group), checkpoint_uri(job.run, step, Attempt(*of_checkpoint))


def build_model(job: TrainJob, tokenizer: Tokenizer) -> tuple[PreTrainedModel, list[nn.Module]]:
    """The folded model at its initial weights, the same in every process, and a deeper checkpoint's own layers."""
    spec = job.spec
    model, sources, _ = load_folded(spec.model, job.init, spec.fold.plan(), tokenizer, spec.seed)
    return model, sources


def _report_distances(
    job: TrainJob, worker: Worker, model: PreTrainedModel, sources: list[nn.Module], batch: Batch
) -> None:
    """Write `seed.json`: how far each depth begins from the checkpoint that it was made of, on one batch."""
    moved = batch.to(worker.device)
    layers = [layer.to(worker.device) for layer in sources]
    distances = initial_distances(model, layers, moved.inputs, moved.frames_B)
    values = {"checkpoint": job.init, "method": job.spec.model.seed_layers, "distances": distances}
    storage.write_json(Run(job.run).seed_distances, values)
