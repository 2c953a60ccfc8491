"""Validation: scores of checkpoints, computed in parallel to training, and the decisions that follow from them."""

import logging
import time
from collections.abc import Callable, Container
from concurrent.futures import Future

import jiwer
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foldray.data.epoch import plan_scoring
from foldray.data.manifest import read_index, read_manifest
from foldray.data.stream import Batch, BatchLoader
from foldray.evaluation.decode import greedy_texts
from foldray.evaluation.generate import generate_texts
from foldray.folding.loss import attention_per_path, ctc_per_path
from foldray.models.families import family_of
from foldray.models.fold import ctc_logits, set_depths, stack_of
from foldray.models.save_load import load_model
from foldray.models.tokenizer import Tokenizer
from foldray.results.metrics import VALIDATION, Record, read_metrics, write_metrics
from foldray.storage.layout import CheckpointFolder
from foldray.storage.records import read_as
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.cursor import Cursor, is_validated
from foldray.training.job import TrainJob
from foldray.training.run_folder import whole_checkpoints

_log = logging.getLogger("foldray.training")

VALIDATION_SECONDS = 3600.0
"""How long training waits for a validation."""

POLL_SECONDS = 0.2
"""How often the workers check together whether a validation is done."""


@torch.no_grad()
def validate_checkpoint(run: str, step: int, uri: str, corpus: str, max_duration: float, device: str = "cpu") -> Record:
    """Score every depth of a checkpoint on the validation split, and write the scores to the run's metrics.

    Args:
        run: URI of the run.
        step: Step of the checkpoint.
        uri: URI of the checkpoint.
        corpus: URI of the prepared corpus.
        max_duration: Seconds of padded audio in a batch.
        device: torch device.

    Returns:
        `step`, `valid_ctc` or `valid_attention` (loss per label by depth), `valid_wer` and `valid_cer` (error rates
        of words and characters of greedy decoding by depth, as fractions).
    """
    model = load_model(uri)
    torch.nn.Module.to(model, torch.device(device))
    manifest = read_manifest(corpus)
    index = read_index(corpus, manifest, "valid")
    loader = BatchLoader(index, model, manifest.tokenizer, None, seed=0)
    depths = stack_of(model).plan.depths
    seq2seq = family_of(model).seq2seq
    loss_P = torch.zeros(len(depths), device=device)
    references: list[str] = []
    hypotheses: list[list[str]] = [[] for _ in depths]
    for batch in loader.ahead(plan_scoring(index, max_duration), epoch=0):
        losses_P, found = _recognise(model, batch.to(torch.device(device)), manifest.tokenizer)
        loss_P += losses_P
        references += batch.texts
        for texts, more in zip(hypotheses, found, strict=True):
            texts += more
    labels = int(index.num_labels.sum()) + (len(index) if seq2seq else 0)  # a decoder also learns its end token
    losses = (loss_P / labels).tolist()
    record: Record = {
        "step": step,
        "valid_attention" if seq2seq else "valid_ctc": dict(zip(map(str, depths), losses, strict=True)),
        "valid_wer": {str(d): jiwer.wer(references, texts) for d, texts in zip(depths, hypotheses, strict=True)},
        "valid_cer": {str(d): jiwer.cer(references, texts) for d, texts in zip(depths, hypotheses, strict=True)},
    }
    write_metrics(run, VALIDATION, [record])
    return record


def batch_losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute the loss of every depth: CTC, or the cross-entropy of a sequence-to-sequence model's decoder.

    Args:
        model: A folded model, in evaluation mode.
        batch: A batch of its inputs and labels.

    Returns:
        Losses (P,), summed over utterances, and the logits (P, B, T or U, V) that they are computed from.
    """
    depths = stack_of(model).plan.depths
    if not family_of(model).seq2seq:
        logits_PBTV = ctc_logits(model(**batch.encoder_inputs)).unflatten(0, (len(depths), -1))
        log_probs = logits_PBTV.float().log_softmax(-1)
        return ctc_per_path(log_probs, batch.frames_B, batch.labels_BU, batch.num_labels_B, blank=0), logits_PBTV
    assert batch.targets_BU is not None
    set_depths(model, depths)
    logits_PBUV = model(**batch.inputs, use_cache=False).logits.unflatten(0, (len(depths), -1))
    logits_PBUV = logits_PBUV[:, :, -batch.targets_BU.shape[1] :].float()
    return attention_per_path(logits_PBUV, batch.targets_BU, batch.num_labels_B + 1, smoothing=0.0), logits_PBUV


def _recognise(model: PreTrainedModel, batch: Batch, tokenizer: Tokenizer) -> tuple[Tensor, list[list[str]]]:
    """Losses (P,), summed over utterances, and the texts of each depth, decoded greedily."""
    loss_P, logits_PBTV = batch_losses(model, batch)
    if not family_of(model).seq2seq:
        return loss_P, [greedy_texts(logits_BTV, batch.frames_B, tokenizer) for logits_BTV in logits_PBTV]
    texts = []
    for depth in stack_of(model).plan.depths:
        set_depths(model, depth)
        texts.append(generate_texts(model, batch.encoder_inputs, tokenizer, batch.longest, batch.languages))
    return loss_P, texts


class Validations:
    """The validations of a run: starts them, collects their scores, and decides early stopping and the best step.

    Rank 0 starts and collects; the other workers take part in the collective methods only.
    """

    def __init__(self, job: TrainJob, worker: WorkerContext, hooks: LoopHooks, start: Cursor) -> None:
        """Start without any validation under way.

        Args:
            job: The job.
            worker: This process.
            hooks: Its `validate` starts a validation; None for a run that is not validated.
            start: Where training starts; scores of later steps belong to lost weights and are ignored.
        """
        self._job, self._worker, self._hooks, self._start = job, worker, hooks, start
        self._spec = job.spec
        self._metric = f"valid_{job.spec.valid.metric}"
        self._depth = str(job.spec.valid.depth or job.spec.fold.depths[-1])
        self._scores = known_scores(read_metrics(job.run), start.step) if worker.rank == 0 else {}
        self._under_way: dict[int, tuple[Future[Record], float]] = {}

    def is_due(self, cursor: Cursor) -> bool:
        """Return whether the checkpoint at this cursor is validated."""
        return bool(self._hooks.validate) and is_validated(self._spec, cursor)

    def begin(self, cursor: Cursor, uri: str) -> None:
        """Start to score a complete checkpoint, if it is due. Called by the checkpoint writer."""
        if not self._hooks.validate or not self.is_due(cursor):
            return
        if any(not scoring.done() for scoring, _ in self._under_way.values()):
            _log.warning("step %d is not scored: the previous validation is still running", cursor.step)
            return
        try:
            self._under_way[cursor.step] = self._hooks.validate(cursor.step, uri), time.monotonic()
        except Exception as error:  # the checkpoint is complete all the same
            _log.warning("the validation of step %d could not start: %r", cursor.step, error)

    def begin_missing(self) -> None:
        """Start the validations that a killed attempt started and did not finish. Rank 0 only."""
        if not self._hooks.validate:
            return
        scored = self.error_rates()
        for found in whole_checkpoints(self._job.run):
            cursor = read_as(Cursor, CheckpointFolder(found.uri).state)
            if found.step in scored or not self.is_due(cursor):
                continue
            self.begin(cursor, found.uri)
            if found.step < self._start.step:
                # Early stopping at the start depends on this score.
                while self._is_waited_for():
                    time.sleep(POLL_SECONDS)
                self._collect()

    def wait(self, is_written: Callable[[], bool]) -> float:
        """Wait for the validations under way, then collect their scores. Collective. Returns the seconds waited.

        All workers poll together: a worker that waited alone would let the others' collective time out.

        Args:
            is_written: Returns whether the checkpoint writer is idle; only then all validations have started.
        """
        began = time.perf_counter()
        while not self._worker.broadcast([is_written() and not self._is_waited_for()])[0]:
            time.sleep(POLL_SECONDS)
        if self._worker.rank == 0:
            self._collect()
        return time.perf_counter() - began

    def stops_early(self, cursor: Cursor) -> bool:
        """Return whether training stops at this cursor: no better score in `valid.patience` validations. Collective."""
        if self._spec.valid.patience is None or not self.is_due(cursor):
            return False
        rates = list(self.error_rates(before=cursor.step).values())
        stops = self._worker.rank == 0 and has_no_progress(rates, self._spec.valid.patience)
        return bool(self._worker.broadcast([stops])[0])

    def error_rates(self, before: int | None = None) -> dict[int, float]:
        """Return `valid.metric` at the chosen depth by step, of all validations or of those before a step."""
        return {
            step: float(record[self._metric][self._depth])
            for step, record in sorted(self._scores.items())
            if before is None or step < before
        }

    def best_step(self, among: Container[int] | None = None) -> int | None:
        """Return the step of the best score (the first of equals); None without scores."""
        rates = {step: rate for step, rate in self.error_rates().items() if among is None or step in among}
        return min(rates, key=rates.__getitem__, default=None)

    def kept_steps(self) -> set[int]:
        """Return the steps whose checkpoints must stay: the best one, and those that are being scored."""
        best = self.best_step()
        return set(self._under_way) | ({best} if best is not None else set())

    def _is_waited_for(self) -> bool:
        """Return whether a validation is running that started less than VALIDATION_SECONDS ago."""
        late = time.monotonic() - VALIDATION_SECONDS
        return any(began > late and not scoring.done() for scoring, began in self._under_way.values())

    def _collect(self) -> None:
        """Take the scores of finished validations; a failed one is logged, and training goes on.

        One that still runs stays under way, and its checkpoint stays in the store for as long.
        """
        for step, (scoring, _) in list(self._under_way.items()):
            if not scoring.done():
                _log.warning("the checkpoint of step %d is still being scored; training goes on without", step)
                continue
            try:
                self._scores[step] = scoring.result()
                self._hooks.on_record(self._scores[step])
            except Exception as error:
                _log.warning("the checkpoint of step %d has no validation score: %r", step, error)
            del self._under_way[step]


def has_no_progress(rates: list[float], patience: int) -> bool:
    """Return whether the last `patience` error rates are no better than one before them."""
    return bool(rates) and len(rates) - 1 - rates.index(min(rates)) >= patience


def known_scores(records: list[Record], up_to: int) -> dict[int, Record]:
    """Return the validations in a run's metrics by step, up to the step that training resumes from."""
    return {record["step"]: record for record in records if "valid_wer" in record and record["step"] <= up_to}
