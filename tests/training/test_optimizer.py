"""Muon and AdamW as one optimiser: torch's own two, on the parameters that each is for, in training as in a loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foldray.config.load import override_spec
from foldray.config.training import OptimSpec
from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import BatchLoader
from foldray.folding.private import is_private_key
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.job import TrainJob
from foldray.training.loop import train_model
from foldray.training.optimizer import make_optimizer, orthogonalise
from foldray.training.schedule import part_of
from foldray.training.state import build_model
from tests.support.training import Killed, assert_same, job_for, weights

MUON = ["optim.kind=muon", "optim.lr_matrices=4"]


def muon_job(name: str, prepared: tuple[str, Manifest], folder: Path, *fields: str, **optim: Any) -> TrainJob:
    job = job_for(name, prepared, folder, **optim)
    return TrainJob(override_spec(job.spec, [*MUON, *fields]), job.run, job.corpus, job.init)


@pytest.mark.parametrize("name", ["parakeet", "wav2vec2-stable", "wav2vec2-conformer"])
def test_muon_has_the_matrices_of_the_blocks_and_nothing_else(
    name: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    job = muon_job(name, prepared, tmp_path, "fold.private=norms+lora+film", "fold.lora_rank=4", "optim.lr_seed=0.5")
    model = build_model(job, prepared[1].tokenizer)[0]
    index = read_index(*prepared, "train")
    batch = BatchLoader(index, model, prepared[1].tokenizer, None, 0).load(np.arange(2), epoch=0)
    model(**batch.inputs)  # leaves the last use running, whose weights are made of the seed's and private ones
    optimizer = make_optimizer(model, job.spec.optim, WorkerContext())
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    by_part = {
        part: {names[id(p)] for group in optimizer.param_groups if group["part"] == part for p in group["params"]}
        for part in ("front", "seed", "matrices", "private", "rest")
    }
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert set.union(*by_part.values()) == trained
    assert sum(map(len, by_part.values())) == len(trained)
    matrices = {
        f"{key}.weight"
        for key, module in model.named_modules()
        if (isinstance(module, nn.Linear) or "pointwise" in key) and part_of(model, f"{key}.weight") == "seed"
    }
    assert by_part["matrices"] == matrices
    assert len(matrices) >= 6 * job.spec.fold.num_layers
    assert all(map(is_private_key, by_part["private"]))
    shares = {group["part"]: group["share"] for group in optimizer.param_groups}
    assert shares == {"front": 1, "seed": 0.5, "matrices": 2, "private": 1, "rest": 1}


def torchs_own(model: nn.Module, optim: OptimSpec) -> tuple[dict[str, nn.Parameter], list[torch.optim.Optimizer]]:
    """Copies of the parameters that are Muon's, as matrices; torch's Muon for them and AdamW for the others."""
    linear = {id(module.weight) for module in model.encoder.layers.modules() if isinstance(module, nn.Linear)}
    by_muon = {
        name: nn.Parameter(parameter.detach().flatten(1).clone())
        for name, parameter in model.named_parameters()
        if id(parameter) in linear or ("pointwise" in name and parameter.ndim > 1)
    }
    others = [parameter for name, parameter in model.named_parameters() if name not in by_muon]
    decays = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    muon = {"lr": optim.lr, "weight_decay": optim.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return by_muon, [
        torch.optim.Muon(by_muon.values(), **muon),
        torch.optim.AdamW(decays, lr=optim.lr, betas=optim.betas),
    ]


def test_one_optimiser_makes_the_steps_of_two(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = muon_job("parakeet", prepared, tmp_path, "optim.weight_decay=30")
    ours, theirs = (build_model(job, prepared[1].tokenizer)[0] for _ in range(2))
    one = make_optimizer(ours, job.spec.optim, WorkerContext())
    by_muon, two = torchs_own(theirs, job.spec.optim)
    initial = {name: parameter.detach().clone() for name, parameter in by_muon.items()}
    for step in range(3):
        torch.manual_seed(step)
        gradients = {name: torch.randn_like(parameter) for name, parameter in ours.named_parameters()}
        for model in (ours, theirs):
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name].clone()
        for name, parameter in by_muon.items():
            parameter.grad = gradients[name].flatten(1).clone()
        for each in (one, *two):
            for group in each.param_groups:
                group["lr"] = job.spec.optim.lr * (step + 1)  # as training sets it, without the shares
            each.step()
        one.zero_grad(set_to_none=True)
        assert all(parameter.grad is None for parameter in ours.parameters())
    for name, mine in ours.named_parameters():
        if name not in by_muon:
            assert torch.equal(mine, theirs.get_parameter(name)), name
            continue
        expected, moved = by_muon[name], by_muon[name] - initial[name]
        # torch's works in bfloat16.
        assert (mine.flatten(1) - expected).detach().norm() < 0.02 * moved.detach().norm(), name


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_orthogonalised_matrices_keep_their_vectors_and_lose_their_values(shape: tuple[int, int]) -> None:
    u_MK, _, v_KN = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False
    )
    for size in (1e-12, 1.0, 1e6):
        values_K = size * torch.linspace(1, 0.02, len(v_KN))
        made = u_MK.T @ orthogonalise(u_MK * values_K @ v_KN) @ v_KN.T
        torch.testing.assert_close(made, torch.diag(made.diagonal()), atol=1e-4, rtol=0)
        assert 0.6 < float(made.diagonal().min()) <= float(made.diagonal().max()) < 1.25
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.main
def test_muon_killed_and_resumed_is_bit_equal(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    whole, cut = (muon_job("parakeet", prepared, tmp_path / name, steps=8) for name in ("whole", "cut"))
    train_model(whole, WorkerContext())

    def die(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            assert record["lr_matrices"] == 4 * record["lr"]
            raise Killed

    with pytest.raises(Killed):
        train_model(cut, WorkerContext(), LoopHooks(die))
    assert train_model(cut, WorkerContext()).resumed_from_step == 3
    assert_same(weights(whole.run), weights(cut.run))
