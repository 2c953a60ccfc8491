"""Scores on the validation split, of a checkpoint, beside training; and what follows from them."""

import logging
import time
from collections.abc import Callable, Container
from concurrent.futures import Future

import jiwer
import torch

from foldray.config.spec import RunSpec
from foldray.data.epoch import plan_scoring
from foldray.data.manifest import read_index, read_manifest
from foldray.data.stream import BatchLoader
from foldray.evaluation.decode import greedy_texts
from foldray.folding.loss import ctc_per_path
from foldray.models.fold import ctc_logits, stack_of
from foldray.models.save_load import load_model
from foldray.results.metrics import VALIDATION, Record, write_metrics

_log = logging.getLogger("foldray.training")

VALIDATION_SECONDS = 3600.0
"""How long a validation may keep training waiting."""


@torch.no_grad()
def validate_checkpoint(run: str, step: int, uri: str, corpus: str, max_duration: float, device: str = "cpu") -> Record:
    """Score every depth of a checkpoint and write `{step, valid_ctc, valid_wer}` beside the run's metrics.

    valid_ctc: CTC loss per label; valid_wer: word error rate of the best path, as a fraction. Both by depth.
    """
    model = load_model(uri)
    torch.nn.Module.to(model, torch.device(device))
    manifest = read_manifest(corpus)
    index = read_index(corpus, manifest, "valid")
    loader = BatchLoader(index, model, manifest.tokenizer, None, seed=0)
    depths = stack_of(model).plan.depths
    loss_P = torch.zeros(len(depths), device=device)
    references: list[str] = []
    heard: list[list[str]] = [[] for _ in depths]
    for batch in loader.ahead(plan_scoring(index, max_duration), epoch=0):
        moved = batch.to(torch.device(device))
        logits_PBTV = ctc_logits(model(**moved.encoder_inputs)).unflatten(0, (len(depths), -1))
        log_probs = logits_PBTV.float().log_softmax(-1)
        loss_P += ctc_per_path(log_probs, moved.frames_B, moved.labels_BU, moved.num_labels_B, blank=0)
        references += batch.texts
        for texts, logits_BTV in zip(heard, logits_PBTV, strict=True):
            texts += greedy_texts(logits_BTV, moved.frames_B, manifest.tokenizer)
    losses = (loss_P / int(index.num_labels.sum())).tolist()
    record: Record = {
        "step": step,
        "valid_ctc": dict(zip(map(str, depths), losses, strict=True)),
        "valid_wer": {str(depth): jiwer.wer(references, texts) for depth, texts in zip(depths, heard, strict=True)},
    }
    write_metrics(run, VALIDATION, [record])
    return record


def is_stopped_early(wers: list[float], patience: int | None) -> bool:
    """Whether the last `patience` validations brought no better score than one before them."""
    return patience is not None and len(wers) - 1 - _best(wers) >= patience


def _best(wers: list[float]) -> int:
    """The first of the best scores; -1 of none."""
    return wers.index(min(wers)) if wers else -1


class Validations:
    """The first worker's book of validations: which are under way, and the scores of the others."""

    def __init__(self, spec: RunSpec, known: dict[int, Record], on_record: Callable[[Record], None]) -> None:
        self._depth = str(spec.valid.depth or spec.fold.depths[-1])
        self._patience = spec.valid.patience
        self._on_record = on_record
        self._known = known
        self._under_way: dict[int, tuple[Future[Record], float]] = {}

    def begin(self, step: int, scoring: Future[Record]) -> None:
        """Note that the checkpoint of a step is being scored."""
        self._under_way[step] = scoring, time.monotonic()

    def are_done(self) -> bool:
        """Whether none is under way any more."""
        return all(scoring.done() for scoring, _ in self._under_way.values())

    def are_waited_for(self) -> bool:
        """Whether one is under way that began in the last hour."""
        late = time.monotonic() - VALIDATION_SECONDS
        return any(began > late and not scoring.done() for scoring, began in self._under_way.values())

    def settle(self) -> None:
        """Take in the scores that are there; one that failed has none, and training goes on.

        What is not done stays under way: its checkpoint must stay as long, or its score would be of nothing.
        """
        for step, (scoring, _) in list(self._under_way.items()):
            if not scoring.done():
                _log.warning("the checkpoint of step %d is still being scored; training goes on without", step)
                continue
            try:
                self._known[step] = scoring.result()
                self._on_record(self._known[step])
            except Exception as error:
                _log.warning("the checkpoint of step %d has no validation score: %r", step, error)
            del self._under_way[step]

    def scores(self, up_to: int | None = None) -> dict[int, float]:
        """WER at the chosen depth by step, of validations before step `up_to`."""
        return {
            step: float(record["valid_wer"][self._depth])
            for step, record in sorted(self._known.items())
            if up_to is None or step < up_to
        }

    def is_over(self, step: int) -> bool:
        """Whether a run at a validation's step ends there, by the scores of those before it."""
        return is_stopped_early(list(self.scores(step).values()), self._patience)

    def best_step(self, among: Container[int] | None = None) -> int | None:
        """The step of the best checkpoint, `among` some; None where none has a score."""
        scores = {step: score for step, score in self.scores().items() if among is None or step in among}
        return list(scores)[_best(list(scores.values()))] if scores else None

    def kept_steps(self) -> set[int]:
        """Steps whose checkpoints must stay: the best, and the one that is being scored."""
        best = self.best_step()
        return set(self._under_way) | ({best} if best is not None else set())


def known_scores(records: list[Record], up_to: int) -> dict[int, Record]:
    """Validations in a run's metrics, by step, up to the step that it goes on from."""
    return {record["step"]: record for record in records if "valid_wer" in record and record["step"] <= up_to}
