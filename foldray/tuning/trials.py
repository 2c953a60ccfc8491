"""One trial: an ordinary run that is trained and scored, and reports every validation to the search."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from foldray.config.spec import RunSpec
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.models.costs import DepthCost, plan_costs
from foldray.results.metrics import Record, read_metrics, validation_loss
from foldray.results.searches import TrialRecord, write_record
from foldray.stages.evaluate import score_run
from foldray.training.launch import describe, run_uri, train
from foldray.training.run_folder import is_finished
from foldray.training.tokens import check_tokens


@dataclasses.dataclass(frozen=True)
class TrialReport:
    """One validation of a trial.

    Attributes:
        objectives: Values by the objectives' names.
        loss: Validation loss per label at the deepest depth.
        progress: The share of the training that is done.
        step: The step that was validated.
    """

    objectives: dict[str, float]
    loss: float
    progress: float
    step: int

    @classmethod
    def of_validation(
        cls, validated: Record, progress: float, objectives: tuple[str, ...], costs: list[DepthCost]
    ) -> "TrialReport":
        """Build a report from a metrics record. Raises UserError for an objective of a depth that the trial lacks."""
        values = {name: _objective(name, validated, costs) for name in objectives}
        return cls(values, validation_loss(validated)[str(costs[-1].depth)], progress, validated["step"])

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> "TrialReport | None":
        """Read a report back from Ray Tune; None for results that are not of `as_result`."""
        if "loss" not in result:
            return None
        objectives = {name: result[name] for name in result["objectives"]}
        return cls(objectives, result["loss"], result["progress"], result["step"])

    def as_result(self) -> dict[str, object]:
        """What Ray Tune receives; sampler and scheduler read each objective, `loss` and `progress` by name."""
        names = list(self.objectives)
        return {
            **self.objectives, "objectives": names, "loss": self.loss, "progress": self.progress, "step": self.step,
        }  # fmt: skip

    def added_to(self, record: TrialRecord) -> TrialRecord:
        """Return a trial's record with these values."""
        return dataclasses.replace(
            record, objectives=self.objectives, loss=self.loss, progress=self.progress, step=self.step
        )


class _Reporter:
    """Reports each validation of a trial once; `read_metrics` and the running training may both have it."""

    def __init__(
        self, objectives: tuple[str, ...], costs: list[DepthCost], report: Callable[[TrialReport], None]
    ) -> None:
        self._objectives = objectives
        self._costs = costs
        self._report = report
        self._progress: dict[int, float] = {}
        self._reported: set[int] = set()

    def __call__(self, record: Record) -> None:
        step = record["step"]
        if "progress" in record:
            self._progress[step] = record["progress"]
        if "valid_wer" in record and step not in self._reported:
            self._reported.add(step)
            self._report(TrialReport.of_validation(record, self._progress[step], self._objectives, self._costs))


def run_trial(
    spec: RunSpec,
    corpus: str,
    search: str,
    record: TrialRecord,
    objectives: tuple[str, ...],
    report: Callable[[TrialReport], None],
) -> TrialRecord:
    """Train and score a trial, or resume it. Its record is in the store from the start, its result rows at the end.

    Args:
        spec: The run to train.
        corpus: URI of the prepared corpus.
        search: URI of the search's folder.
        record: The trial's record. A trial that was stopped early only replays its reports.
        objectives: Names of the search's objectives.
        report: Receives every validation, first those of earlier attempts.

    Returns:
        The record with the trial's final state.

    Raises:
        UserError: The spec can't be trained or lacks a depth of an objective.
    """
    run = run_uri(spec, record.run_id)
    costs = plan_costs(spec.planned_model(), len(read_manifest(corpus).tokenizer))
    for name in objectives:
        _cost_at(name, costs)
    reporter = _Reporter(objectives, costs, report)
    for each in read_metrics(run):
        reporter(each)
    write_record(search, record)
    if record.state == "stopped":
        return record
    if not is_finished(run):
        check_tokens(spec, read_manifest(corpus))
        describe(spec, corpus, run)
    trained = train(spec, corpus, run, on_record=reporter)
    score_run(spec, run, trained.step)
    final = TrialReport.of_validation(_validation_of(run, trained.step), 1.0, objectives, costs)
    record = dataclasses.replace(final.added_to(record), state="finished", step=trained.step)
    write_record(search, record)
    return record


def _validation_of(run: str, step: int) -> Record:
    """Return the validation of a finished run's final model, which may be an earlier checkpoint (valid.final)."""
    validated = [each for each in read_metrics(run) if "valid_wer" in each]
    if not validated:
        raise UserError("valid.every_steps", "the trial ended before its first validation; lower it")
    return next((each for each in validated if each["step"] == step), validated[-1])


def _cost_at(name: str, costs: list[DepthCost]) -> DepthCost:
    """Return the costs of the depth in an objective such as wer@6. Raises UserError if the trial lacks that depth."""
    _, _, at = name.partition("@")
    for cost in costs:
        if cost.depth == (int(at) if at else costs[-1].depth):
            return cost
    trained = ", ".join(str(cost.depth) for cost in costs)
    raise UserError("search.objectives", f"{name}: this trial trains the depths {trained}; let every trial have {at}")


def _objective(name: str, validated: Record, costs: list[DepthCost]) -> float:
    at = _cost_at(name, costs)
    values = {
        "wer": validated["valid_wer"].get(str(at.depth)),
        "cer": validated.get("valid_cer", {}).get(str(at.depth)),
        "loss": validation_loss(validated).get(str(at.depth)),
        "macs": at.macs_per_audio_second,
        "bytes": at.bytes_stored,
        "params": at.params_stored,
    }
    return float(values[name.partition("@")[0]])
