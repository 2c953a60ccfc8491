"""Training in a plain PyTorch loop: the peer of `python -m benchmarks train`.

The weights, the loss, the optimiser and the planned batches are ours, the loop is not: rows are in memory, soundfile
and the stock extractor turn them into features between the steps or in a process of torch's DataLoader, and several
processes train with DistributedDataParallel over gloo.
"""

import contextlib
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from benchmarks.measure import hold_to_core
from foldray.config.corpus import SAMPLE_RATE
from foldray.config.spec import RunSpec
from foldray.data.epoch import MicroBatch
from foldray.data.manifest import SplitIndex, read_index, read_manifest
from foldray.data.reader import RowReader
from foldray.folding.batchnorm import Renorm
from foldray.folding.loss import StepCounts, joint_loss
from foldray.models.features import build_extractor, output_frames
from foldray.models.from_checkpoint import load_folded
from foldray.models.stock import write_random_checkpoint
from foldray.models.tokenizer import Tokenizer
from foldray.results.metrics import Record
from foldray.training.cursor import plan_of
from foldray.training.schedule import moving_share

INIT, RECORDS_FILE = "init", "steps.json"

Loaded = tuple[dict[str, Tensor], Tensor, Tensor, Tensor]


def run_bare(spec: RunSpec, corpus: str, folder: str, *, ahead: bool = False) -> list[Record]:
    """Train from the same initial weights as ours, in `spec.scale.workers` processes.

    Args:
        spec: The run.
        corpus: URI of the prepared corpus.
        folder: An empty folder.
        ahead: Whether a DataLoader decodes ahead.

    Returns:
        A record for each step: `seconds`, `ctc` by depth and `grad_norm`.
    """
    workers, tokenizer = spec.scale.most_workers, read_manifest(corpus).tokenizer
    write_random_checkpoint(spec.model, spec.fold.num_layers, tokenizer, spec.seed, Path(folder, INIT))
    processes: Any = torch.multiprocessing  # it does not export its own spawn
    processes.spawn(_train, (spec, corpus, folder, ahead), nprocs=workers)
    records: list[Record] = json.loads(Path(folder, RECORDS_FILE).read_text())
    return records


def planned_steps(spec: RunSpec, index: SplitIndex) -> list[list[MicroBatch]]:
    """The micro-batches of every step of a run, epoch by epoch."""
    plans = (plan_of(spec, index, epoch) for epoch in itertools.count())
    steps = (plan.step(number) for plan in plans for number in range(len(plan)))
    return list(itertools.islice(steps, spec.optim.steps))


class _Batches(Dataset[Loaded]):
    """Inputs, frames, labels and their lengths of micro-batches, from FLAC in memory."""

    def __init__(
        self, index: SplitIndex, batches: list[MicroBatch], model: PreTrainedModel, tokenizer: Tokenizer
    ) -> None:
        read = RowReader(index)
        self._rows = {int(position): read(int(position)) for batch in batches for position in batch}
        self._batches, self._model, self._tokenizer = batches, model, tokenizer
        self._extractor = build_extractor(model)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Loaded:
        rows = [self._rows[int(position)] for position in self._batches[number]]
        waveforms = [soundfile.read(io.BytesIO(row["audio"]), dtype="float32")[0] for row in rows]
        features = self._extractor(
            waveforms, sampling_rate=SAMPLE_RATE, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        inputs = {name: features[name] for name in ("input_features", "attention_mask")}
        frames_B = torch.tensor(output_frames(self._model, [len(samples_T) for samples_T in waveforms]))
        labels = [torch.tensor(self._tokenizer.encode(row["text"])) for row in rows]
        return inputs, frames_B, pad_sequence(labels, batch_first=True), torch.tensor([len(label) for label in labels])


def _counts(model: PreTrainedModel, index: SplitIndex, step: list[MicroBatch]) -> StepCounts:
    members = np.concatenate(step)
    frames = sum(output_frames(model, index.num_samples[members].tolist()))
    return StepCounts(int(index.num_labels[members].sum()), frames, len(members))


def _train(rank: int, spec: RunSpec, corpus: str, folder: str, ahead: bool) -> None:
    """Train as one of the processes; the first writes RECORDS_FILE."""
    torch.set_num_threads(1)
    hold_to_core(rank)
    torch.set_flush_denormal(True)  # as ours
    workers, manifest = spec.scale.most_workers, read_manifest(corpus)
    index = read_index(corpus, manifest, "train")
    model: Any = load_folded(spec.model, f"{folder}/{INIT}", spec.fold.plan(), manifest.tokenizer, spec.seed)[0].train()
    renorm = Renorm(model, torch.device("cpu"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = planned_steps(spec, index)
    counts = [_counts(model, index, step) for step in steps]
    # A process without a batch in a step runs the first one with weight zero.
    mine = [[(batch, 1.0) for batch in step[rank::workers]] or [(step[0], 0.0)] for step in steps]
    batches = _Batches(index, [batch for step in mine for batch, _ in step], model, manifest.tokenizer)
    inline = map(batches.__getitem__, range(len(batches)))
    loaded = iter(DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)) if ahead else inline
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
        net: Any = DistributedDataParallel(model)
    else:
        net = model
    optimizer = torch.optim.AdamW(trained, lr=spec.optim.lr, betas=spec.optim.betas, weight_decay=0)
    records = []
    for number, (step, count) in enumerate(zip(mine, counts, strict=True)):
        began = time.perf_counter()
        renorm.share = moving_share(number / len(steps), spec.optim)
        losses_P = torch.zeros(len(spec.fold.depths))
        for turn, (_, weight) in enumerate(step):
            inputs, frames_B, labels_BU, num_labels_B = next(loaded)
            alone = contextlib.nullcontext() if workers == 1 or turn + 1 == len(step) else net.no_sync()
            with alone, renorm.observing(frames_B, weight):
                logits_PBTV = net(**inputs).logits.unflatten(0, (len(spec.fold.depths), -1))
                labels = (frames_B, labels_BU, num_labels_B)
                loss = joint_loss(logits_PBTV, *labels, count, alpha=spec.loss.alpha, beta=spec.loss.beta)
                (loss.total * weight * workers).backward()
            losses_P += loss.task_P * weight
        norm = torch.nn.utils.clip_grad_norm_(trained, spec.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        renorm.move(dist.all_reduce if workers > 1 else None)
        ctc = dict(zip(map(str, spec.fold.depths), losses_P.tolist(), strict=True))
        records.append({"ctc": ctc, "grad_norm": float(norm), "seconds": time.perf_counter() - began})
    if rank == 0:
        Path(folder, RECORDS_FILE).write_text(json.dumps(records))
    if workers > 1:
        dist.destroy_process_group()
