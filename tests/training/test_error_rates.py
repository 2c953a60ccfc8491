"""WER or CER: what validation keeps, when it stops, what a search minimises, and both wherever one is shown."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foldray.config.recipes import load_recipe
from foldray.config.search import OBJECTIVE
from foldray.results.metrics import VALIDATION, Record, write_metrics
from foldray.results.report import _headline
from foldray.results.searches import figure
from foldray.runtime.terminal import _describe_rates
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.cursor import Cursor
from foldray.training.validation import Validations
from foldray.tuning.trials import TrialReport

RECORDS: list[Record] = [
    {"step": 2, "valid_ctc": {"12": 3.0}, "valid_wer": {"12": 1.0}, "valid_cer": {"12": 0.30}},
    {"step": 4, "valid_ctc": {"12": 2.0}, "valid_wer": {"12": 1.0}, "valid_cer": {"12": 0.10}},
    {"step": 6, "valid_ctc": {"12": 1.0}, "valid_wer": {"12": 0.9}, "valid_cer": {"12": 0.20}},
]


@pytest.mark.parametrize(("metric", "best", "rates"), [("wer", 6, [1.0, 1.0, 0.9]), ("cer", 4, [0.3, 0.1, 0.2])])
def test_the_best_checkpoint_is_that_of_the_chosen_rate(
    metric: str, best: int, rates: list[float], tmp_path: Path
) -> None:
    steps = [{"step": record["step"], "seconds": 1.0, "audio_seconds": 16.0} for record in RECORDS]
    write_metrics(str(tmp_path), "0001", steps)
    write_metrics(str(tmp_path), VALIDATION, RECORDS)
    spec = load_recipe("an4", [f"valid.metric={metric}", "fold.num_layers=4", "fold.depths=[4,12]"])
    job: Any = SimpleNamespace(spec=spec, run=str(tmp_path))
    validations = Validations(job, WorkerContext(), LoopHooks(), Cursor(step=6))
    assert list(validations.error_rates().values()) == rates
    assert (validations.best_step(), validations.best_step({2, 6})) == (best, 6)
    assert validations.kept_steps() == {best}


def test_the_default_is_wer_and_names_the_same_run() -> None:
    plain, cer = load_recipe("an4", []), load_recipe("an4", ["valid.metric=cer"])
    assert plain.valid.metric == "wer"
    assert plain.spec_hash("c", "v") == load_recipe("an4", ["valid.metric=wer"]).spec_hash("c", "v")
    assert plain.spec_hash("c", "v") != cer.spec_hash("c", "v")


def test_a_search_minimises_cer() -> None:
    costs: Any = [SimpleNamespace(depth=12, macs_per_audio_second=1, bytes_stored=1, params_stored=1)]
    report = TrialReport.of_validation(RECORDS[1], 1.0, ("cer", "cer@12", "wer"), costs)
    assert report.objectives == {"cer": 0.1, "cer@12": 0.1, "wer": 1.0}
    assert OBJECTIVE.fullmatch("cer@6")
    assert figure("cer@12", 0.125) == "12.5%"


def test_both_rates_are_shown() -> None:
    assert _describe_rates(RECORDS[2]) == "WER by depth  12: 90.0%  CER by depth  12: 20.0%"
    row: Any = {
        "wer": 0.5,
        "cer": 0.125,
        "depth": 12,
        "params_stored": 1e6,
        "params_unrolled": 2e6,
        "bytes_stored": 4e6,
    }
    assert _headline([row]).endswith("WER (CER): 50.0% (12.5%) at depth 12.")
