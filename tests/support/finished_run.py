"""A store with one finished run.

`pytest_plugins = ["tests.support.finished_run"]` gives a test module the fixture `finished`.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foldray.training.context import WorkerContext
from foldray.training.final_model import finish_run
from foldray.training.job import TrainJob
from foldray.training.launch import describe_run
from foldray.training.loop import train_model
from tests.support.training import job_for


@pytest.fixture(scope="session")
def trained_once(prepared: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A run of three steps, finished without Ray once a session."""
    job = job_for("parakeet", prepared, tmp_path_factory.mktemp("finished") / "runs", steps=3)
    trained = train_model(job, WorkerContext())
    finish_run(job, trained.final_steps, trained.attempt)
    return job


@pytest.fixture
def finished(trained_once: TrainJob, prepared: tuple[str, Any], tmp_path: Path) -> TrainJob:
    """A store of the test's own with a copy of that run and of the prepared corpus."""
    runs = tmp_path / "store" / "runs"
    shutil.copytree(prepared[0], tmp_path / "store" / "corpora" / Path(prepared[0]).name)
    shutil.copytree(Path(trained_once.run).parent, runs)
    job = replace(trained_once, run=str(runs / "run"), init=str(runs / "init"))
    Path(job.run, "spec.json").write_text(job.spec.model_dump_json())
    Path(job.run, "run.json").write_text(json.dumps(describe_run(job.spec, job.corpus)))
    return job
