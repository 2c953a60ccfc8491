"""The stage `run`: prepare, train and evaluate."""

from foldray.config.spec import RunSpec
from foldray.stages.evaluate import ScoredModel, score_run
from foldray.stages.train import train_stage


def run_stage(spec: RunSpec, split: str = "test") -> ScoredModel:
    """Prepare, train and evaluate at every trained depth; finished stages are reused."""
    trained = train_stage(spec)
    return {"run_id": trained["run_id"], "rows": score_run(spec, trained["run"], trained["step"], split)}
