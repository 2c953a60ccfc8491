"""One trial: an ordinary run, trained and scored, that tells the search of every validation."""

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
"""Objectives by name, `objectives` (these names), `loss` (validation, per label, of the deepest depth), `progress`,
`step`."""


def run_trial(
    spec: RunSpec,
    corpus: str,
    search: str,
    record: TrialRecord,
    objectives: tuple[str, ...],
    tell: Callable[[Report], None],
) -> TrialRecord:
    """Train and score a trial, or go on with it; its record is in the store all the while, its rows at the end.

    tell: hears of every validation, of those before an interruption first. A trial that was stopped early does no more
    than tell. Raises UserError for a spec that can't be trained or has no such objective.
    """
    run = run_uri(spec, record.run_id)
    costs = plan_costs(spec.found_model(), spec.fold.plan(), len(read_manifest(corpus).tokenizer))
    for name in objectives:
        _cost_at(name, costs)
    progress: dict[int, float] = {}
    told: set[int] = set()

    def hear(each: Record) -> None:
        if "progress" in each:
            progress[each["step"]] = each["progress"]
        if "valid_wer" in each and each["step"] not in told:
            told.add(each["step"])
            tell(report_of(each, progress[each["step"]], objectives, costs))

    for each in read_metrics(run):
        hear(each)
    write_record(search, record)
    if record.state == "stopped":
        return record
    if not is_finished(run):
        describe(spec, corpus, run)
    trained = train(spec, corpus, run, on_record=hear)
    score_run(spec, run, trained.step)
    validated = [each for each in read_metrics(run) if "valid_wer" in each]
    if not validated:
        raise UserError("valid.every_steps", "no trial was validated, so that nothing ranks them; lower it")
    # Of the model that was kept, which may be an earlier one (valid.final).
    kept = next((each for each in validated if each["step"] == trained.step), validated[-1])
    report = report_of(kept, 1.0, objectives, costs)
    record = with_report(record, report, state="finished", step=trained.step)
    write_record(search, record)
    return record


def with_report(record: TrialRecord, report: Report, **more: Any) -> TrialRecord:
    """A record with what was reported last."""
    own = {name: report[name] for name in report["objectives"]}
    facts = {"objectives": own, "loss": report["loss"], "progress": report["progress"], "step": report["step"]}
    return dataclasses.replace(record, **{**facts, **more})


def report_of(validated: Record, progress: float, objectives: tuple[str, ...], costs: list[DepthCost]) -> Report:
    """What one validation says. Raises UserError for an objective of a depth that this trial has not."""
    values = {name: _objective(name, validated, costs) for name in objectives}
    loss = float(validated["valid_ctc"][str(costs[-1].depth)])
    return {**values, "objectives": list(objectives), "loss": loss, "progress": progress, "step": validated["step"]}


def _cost_at(name: str, costs: list[DepthCost]) -> DepthCost:
    """The depth that an objective such as wer@6 is of. Raises UserError where this trial has it not."""
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
