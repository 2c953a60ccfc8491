"""Tiny training jobs, how to kill them, and comparisons of their results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from foldray.config.load import build_spec, override_spec
from foldray.config.spec import RunSpec
from foldray.data.manifest import Manifest
from foldray.models.stock import write_random_checkpoint
from foldray.results.metrics import Record, read_metrics
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.job import TrainJob
from foldray.training.loop import train_model
from foldray.training.run_folder import whole_checkpoints
from tests.support.ports import free_port
from tests.support.tiny import CONFIGS

TRAINED_FAMILIES = ["parakeet", "wav2vec2-bert", "wav2vec2-stable", "hubert-stable", "conformer"]
BY_TIER = [
    "parakeet",
    *(pytest.param(name, marks=pytest.mark.main) for name in ("wav2vec2-stable", "conformer")),
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("wav2vec2-bert", "hubert-stable")),
]
"""The same as parameters of a test: a structure in the fast tier, two more in `make test`, all in `make soak`."""


def spec_for(name: str, per_step: int = 3, **optim: Any) -> RunSpec:
    family, config = CONFIGS[name]
    return build_spec(
        {
            "name": "tiny",
            "corpus": {"path": "unused", "max_seconds": 12},
            "model": {"family": family, "config": config},
            "fold": {"num_layers": 2, "depths": [2, 3, 4]},
            "optim": {"lr": 1e-3, **(optim or {"epochs": 4})},
            "batch": {"max_duration": 12, "per_step": per_step},
            "augment": {"time_masks": 1, "frequency_masks": 1},
            "precision": "float32",
            "checkpoint": {"every_steps": 3},
        },
        "test",
    )


def job_for(
    name: str,
    prepared: tuple[str, Manifest],
    folder: Path,
    per_step: int = 3,
    **optim: Any,
) -> TrainJob:
    spec = spec_for(name, per_step, **optim)
    init = folder / "init"
    if not init.exists():
        write_random_checkpoint(spec.model, spec.fold.num_layers, prepared[1].tokenizer, 0, init)
    return TrainJob(spec, str(folder / "run"), prepared[0], str(init))


def weights(run: str) -> dict[str, torch.Tensor]:
    newest = Path(whole_checkpoints(run)[-1].uri)
    private = newest / "private.safetensors"
    return load_file(newest / "model.safetensors") | (load_file(private) if private.exists() else {})


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert list(ours) == list(theirs)
    for key in ours:
        if tolerance:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=tolerance, msg=key)
        else:
            assert torch.equal(ours[key], theirs[key]), key


MEASURED = ("seconds", "data_wait", "checkpoint_seconds", "validation_wait", "memory")
"""What a step's record says of the machine, not of the run."""


class Killed(BaseException):
    """Simulates the end of the process in the middle of a run."""


def with_fields(job: TrainJob, *overrides: str, folder: Path | None = None) -> TrainJob:
    spec = override_spec(job.spec, list(overrides))
    return replace(job, spec=spec, run=str(folder / "run") if folder else job.run)


def timeless(run: str) -> list[Record]:
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in read_metrics(run)]


def spawn(jobs: list[TrainJob]) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.multiprocessing.spawn(train_rank, args=(jobs, 2, address), nprocs=2)


def killed_at(job: TrainJob, step: int, around: LoopHooks | None = None, worker: WorkerContext | None = None) -> None:
    def die(record: Record) -> None:
        if record["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        train_model(job, worker or WorkerContext(), replace(around or LoopHooks(), on_record=die))


def train_rank(rank: int, jobs: list[TrainJob], world: int, address: str) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as Ray's workers do
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    for job in jobs:
        train_model(job, WorkerContext(rank, world))
    torch.distributed.destroy_process_group()
