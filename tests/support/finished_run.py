"""A store with one finished run.

`pytest_plugins = ["tests.support.finished_run"]` gives a test module the fixture `finished`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from foldray.training.context import WorkerContext
from foldray.training.final_model import finish_run
from foldray.training.job import TrainJob
from foldray.training.launch import describe_run
from foldray.training.loop import train_model
from tests.support.training import job_for


@pytest.fixture
def finished(prepared: tuple[str, Any], tmp_path: Path) -> TrainJob:
    """A store with one finished run (made without Ray), and the prepared corpus moved there."""
    shutil.copytree(prepared[0], tmp_path / "store" / "corpora" / Path(prepared[0]).name)
    job = job_for("parakeet", prepared, tmp_path / "store" / "runs", steps=3)
    trained = train_model(job, WorkerContext())
    finish_run(job, trained.final_steps, trained.attempt)
    Path(job.run, "spec.json").write_text(job.spec.model_dump_json())
    Path(job.run, "run.json").write_text(json.dumps(describe_run(job.spec, job.corpus)))
    return job
