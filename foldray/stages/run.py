"""The stage `run`: prepare, train and evaluate."""

from typing import Any

from foldray.config.spec import RunSpec
from foldray.stages.evaluate import score_run
from foldray.stages.train import train_stage


def run_stage(spec: RunSpec, split: str = "test") -> dict[str, Any]:
    """Prepare, train and evaluate; finished stages are reused.

    Returns:
        `run_id`, and `rows`: the result rows of every trained depth.
    """
    trained = train_stage(spec)
    return {"run_id": trained["run_id"], "rows": score_run(spec, trained["run"], trained["step"], split)}
