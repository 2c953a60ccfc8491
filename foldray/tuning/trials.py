"""One trial: an ordinary run that is trained and scored, and reports every validation to the search."""

import dataclasses
from collections.abc import Callable
from typing import Any

from foldray.config.spec import RunSpec
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.models.costs import DepthCost, plan_costs
from foldray.results.metrics import Record, read_metrics
from foldray.results.searches import TrialRecord, write_record
from foldray.stages.evaluate import score_run
from foldray.training.final_model import is_finished
from foldray.training.launch import describe, run_uri, train

Report = dict[str, Any]
"""What Ray Tune receives of a validation: each objective by its name, `objectives` (those names), `loss` (validation
loss per label at the deepest depth), `progress` and `step`."""


def run_trial(
    spec: RunSpec,
    corpus: str,
    search: str,
    record: TrialRecord,
    objectives: tuple[str, ...],
    report: Callable[[Report], None],
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
    costs = plan_costs(spec.found_model(), spec.fold.plan(), len(read_manifest(corpus).tokenizer))
    for name in objectives:
        _cost_at(name, costs)
    progress: dict[int, float] = {}
    reported: set[int] = set()

    def on_record(each: Record) -> None:
        if "progress" in each:
            progress[each["step"]] = each["progress"]
        if "valid_wer" in each and each["step"] not in reported:
            reported.add(each["step"])
            report(report_of(each, progress[each["step"]], objectives, costs))

    for each in read_metrics(run):
        on_record(each)
    write_record(search, record)
    if record.state == "stopped":
        return record
    if not is_finished(run):
        describe(spec, corpus, run)
    trained = train(spec, corpus, run, on_record=on_record)
    score_run(spec, run, trained.step)
    validated = [each for each in read_metrics(run) if "valid_wer" in each]
    if not validated:
        raise UserError("valid.every_steps", "the trial ended before its first validation; lower it")
    # The final model may be an earlier checkpoint (valid.final).
    kept = next((each for each in validated if each["step"] == trained.step), validated[-1])
    final = report_of(kept, 1.0, objectives, costs)
    record = with_report(record, final, state="finished", step=trained.step)
    write_record(search, record)
    return record


def with_report(record: TrialRecord, report: Report, **more: Any) -> TrialRecord:
    """Return a record with the values of a report."""
    own = {name: report[name] for name in report["objectives"]}
    facts = {"objectives": own, "loss": report["loss"], "progress": report["progress"], "step": report["step"]}
    return dataclasses.replace(record, **{**facts, **more})


def report_of(validated: Record, progress: float, objectives: tuple[str, ...], costs: list[DepthCost]) -> Report:
    """Return the report of one validation. Raises UserError for an objective of a depth that the trial lacks."""
    values = {name: _objective(name, validated, costs) for name in objectives}
    loss = float(validated["valid_ctc"][str(costs[-1].depth)])
    return {**values, "objectives": list(objectives), "loss": loss, "progress": progress, "step": validated["step"]}


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
        "loss": validated["valid_ctc"].get(str(at.depth)),
        "macs": at.macs_per_audio_second,
        "bytes": at.bytes_stored,
        "params": at.params_stored,
    }
    return float(values[name.partition("@")[0]])
