"""The start of a training: what its processes leave out."""

import subprocess
import sys

import pytest


def test_the_driver_starts_a_run_without_torch() -> None:
    """It leaves torch and transformers to the workers, and to the check of a new run's model."""
    code = "import sys; import foldray.stages.train, foldray.training.launch; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.main
def test_the_trainer_leaves_out_callbacks_that_ray_still_has() -> None:
    """A callback that Ray renames would start its actor again, unnoticed."""
    code = """
from foldray.training.ray_trainer import UNUSED, UNUSED_ALONE, WorkerBackendConfig, WorkerTrainer
trainer = WorkerTrainer(print, backend_config=WorkerBackendConfig())
of_ray = {type(each).__name__ for each in super(WorkerTrainer, trainer)._create_default_callbacks()}
ours = {type(each).__name__ for each in trainer._create_default_callbacks()}
print(sorted(of_ray - ours), UNUSED | UNUSED_ALONE <= of_ray)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['DatasetsCallback'] True"
