"""The stage `run`: prepare, train and evaluate."""

from foldray.config.spec import RunSpec
from foldray.models.device import has_gpu, inference_device
from foldray.stages.evaluate import ScoredModel, score_run
from foldray.stages.train import train_stage


def run_stage(spec: RunSpec, split: str = "test") -> ScoredModel:
    """Prepare, train and evaluate at every trained depth; finished stages are reused.

    A run that trains on GPUs (`scale.use_gpu`) is scored on one too, if this machine has one.
    """
    trained = train_stage(spec)
    # Trials of a search are scored on CPUs: their processes see GPUs that others train on.
    device = inference_device(spec.scale.use_gpu and has_gpu())
    return {"run_id": trained["run_id"], "rows": score_run(spec, trained["run"], trained["step"], split, device)}
