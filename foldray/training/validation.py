"""Loss on the validation split, at every depth, between epochs."""

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from foldray.data.epoch import plan_scoring
from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import BatchLoader
from foldray.folding.loss import ctc_per_path
from foldray.models import ctc_logits, set_depths
from foldray.results.metrics import Record
from foldray.training.job import TrainJob, Worker


class Validation:
    """CTC loss per label of every depth; batches are spread over the workers and summed."""

    def __init__(self, job: TrainJob, worker: Worker, model: PreTrainedModel, manifest: Manifest) -> None:
        index = read_index(job.corpus, manifest, "valid")
        self._worker, self._model = worker, model
        self._depths = job.spec.fold.depths
        self._labels = int(index.num_labels.sum())
        self._batches = plan_scoring(index, job.spec.batch.max_duration)[worker.rank :: worker.world]
        self._loader = BatchLoader(index, model, manifest.units, None, job.spec.seed)

    @torch.no_grad()
    def __call__(self) -> Record:
        """`{"valid_ctc": {depth: loss}}`, the same on every rank."""
        total_P = torch.zeros(len(self._depths), device=self._worker.device)
        self._model.eval()
        set_depths(self._model, self._depths)
        mine = np.concatenate(self._batches) if self._batches else np.zeros(0, dtype=np.int64)
        for batch in self._loader.ahead(self._batches, epoch=0, expected=mine):
            moved = batch.to(self._worker.device)
            logits_PBTV = ctc_logits(self._model(**moved.encoder_inputs)).unflatten(0, (len(self._depths), -1))
            log_probs = logits_PBTV.float().log_softmax(-1)
            total_P += ctc_per_path(log_probs, moved.frames_B, moved.labels_BU, moved.num_labels_B, blank=0)
        if self._worker.world > 1:
            dist.all_reduce(total_P)
        means = (total_P / self._labels).tolist()
        return {"valid_ctc": dict(zip(map(str, self._depths), means, strict=True))}
