"""One trial: an ordinary run, trained and scored, that tells the search of every validation."""

import dataclasses
from collections.abc import Callable
from typing import Any

from foldray.costs import plan_costs
from foldray.data.manifest import read_manifest
from foldray.errors import UserError
from foldray.folding.account import DepthCost
from foldray.results.metrics import Record, read_metrics
from foldray.results.searches import TrialRecord, write_record
from foldray.spec import RunSpec
from foldray.stages import score_run
from foldray.training.finish import is_finished
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
    costs = plan_costs(spec.found_model(), spec.fold.plan(), len(read_manifest(corpus).units))
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
    if record.state == "stopped":
        return record
    write_record(search, record)
    if not is_finished(run):
        describe(spec, corpus, run)
    trained = train(spec, corpus, run, on_record=hear)
    score_run(spec, run, trained.step)
    validated = [each for each in read_metrics(run) if "valid_wer" in each]
    if not validated:
        raise UserError("valid.every_steps", "no trial was validated, so that nothing ranks them; lower it")
    report = report_of(validated[-1], 1.0, objectives, costs)
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


def _objective(name: str, validated: Record, costs: list[DepthCost]) -> float:
    kind, _, at = name.partition("@")
    depth = int(at) if at else costs[-1].depth
    by_depth = {cost.depth: cost for cost in costs}
    if depth not in by_depth:
        trained = ", ".join(map(str, by_depth))
        raise UserError(
            "search.objectives", f"{name}: this trial trains the depths {trained}; let every trial have {depth}"
        )
    values = {
        "wer": validated["valid_wer"].get(str(depth)),
        "loss": validated["valid_ctc"].get(str(depth)),
        "macs": by_depth[depth].macs_per_audio_second,
        "bytes": by_depth[depth].bytes_stored,
        "params": by_depth[depth].params_stored,
    }
    return float(values[kind])
