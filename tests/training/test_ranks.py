"""Two ranks equal one process for every family: DistributedDataParallel, and FSDP2 with activation checkpointing."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from foldray import FoldPlan
from foldray.folding.plan import Private
from foldray.models.fold import stack_of
from tests.support.ports import free_port
from tests.support.tiny import CONFIGS, folded, inputs_for, noise, run, without_dropout

pytestmark = pytest.mark.soak

PLAN = FoldPlan(3, (3, 4, 7), order="cycle", private=Private(norms=True, lora_rank=4, film=True))
Gradients = dict[str, torch.Tensor]


def trained_model(name: str) -> PreTrainedModel:
    model = folded(name, PLAN).double().train()
    without_dropout(model)
    return model


def share(model: PreTrainedModel, rank: int, world: int) -> dict[str, torch.Tensor]:
    """This rank's utterances of a padded batch of four."""
    inputs = inputs_for(model, [noise(0.6 + 0.1 * i, seed=i) for i in range(4)])
    mine = {key: value[rank::world] for key, value in inputs.items()}
    return {key: value.double() if value.is_floating_point() else value for key, value in mine.items()}


def backward(model: Any, inputs: dict[str, torch.Tensor], divisor: int) -> None:
    logits = run(model, inputs)
    steps = torch.arange(logits[0].numel(), dtype=torch.float64).view_as(logits[0]).sin()
    (logits.square() * steps).sum().div(divisor).backward()


def gradients_of(model: torch.nn.Module) -> Gradients:
    return {
        key: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for key, p in model.named_parameters()
        if p.grad is not None
    }


def check_rank(rank: int, world: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for name in CONFIGS:
        alone = trained_model(name)
        backward(alone, share(alone, 0, 1), 4)
        expected = gradients_of(alone)
        assert any(".private." in key for key in expected)

        ddp = DistributedDataParallel(trained_model(name))
        # Both wrappers average over ranks; two of four utterances are on each.
        backward(ddp, share(alone, rank, world), 2)
        compare(f"{name}, DDP", gradients_of(ddp.module), expected)

        sharded = trained_model(name)
        sharded.gradient_checkpointing_enable({"use_reentrant": False})
        for block in stack_of(sharded).physical_layers():
            fully_shard(block, mesh=mesh, reshard_after_forward=False)
        fully_shard(sharded, mesh=mesh)
        backward(sharded, share(alone, rank, world), 2)
        compare(f"{name}, FSDP2", gradients_of(sharded), expected)
    dist.destroy_process_group()


def compare(what: str, ours: Gradients, expected: Gradients) -> None:
    assert ours.keys() == expected.keys(), what
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-9, atol=1e-12, msg=lambda m: f"{what}, {key}: {m}")  # noqa: B023


def test_two_ranks_equal_one_process_in_every_family() -> None:
    torch.multiprocessing.spawn(check_rank, args=(2, f"tcp://127.0.0.1:{free_port()}"), nprocs=2)
