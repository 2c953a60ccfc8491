"""Checkpoints: safetensors and JSON, no pickle. Data first, the manifest last: it says what is whole."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.errors import DamagedFileError, UserError
from foldray.folding.private import split_state
from foldray.models.save_load import load_model
from foldray.storage.layout import (
    OPTIMIZER_FILE,
    PRIVATE_FILE,
    STATE_FILE,
    STOCK_FILE,
    TRAINED_FILE,
    TRAINING_FILES,
    CheckpointFolder,
    Run,
    parse_checkpoint,
)
from foldray.training.fencing import Attempt, parse
from foldray.training.parallel import is_sharded, like, whole

# --- What is kept ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """Copies of everything training goes on from, in this process's memory, under the names of a checkpoint's files."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    averaged: dict[str, Tensor]


def take_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, averaged: dict[str, Tensor], *, first: bool
) -> Snapshot | None:
    """Copy the state for a checkpoint; only the first worker keeps it. All workers of a sharded model must call."""
    if not first and not is_sharded(model):
        return None
    kept = [
        _copied(tensors, first=first)
        for tensors in (model.state_dict(), _optimizer_tensors(model, optimizer), averaged)
    ]
    return Snapshot(*kept) if first else None


def _copied(tensors: dict[str, Tensor], *, first: bool) -> dict[str, Tensor]:
    """Whole tensors in this process's memory; the other workers help to gather each one and let it go."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if first:
            copies[name] = gathered.to("cpu", copy=True).contiguous()
    return copies


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state under `<parameter>/<entry>`, so that it does not depend on the order of parameters."""
    # Sorted: workers that gather what is spread over them must do so in one order, and a loaded file has none.
    return {
        f"{name}/{entry}": value
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for entry, value in sorted(optimizer.state[parameter].items())
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put an optimiser's saved state back, on each parameter's device and in its share."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        state: dict[str, Any] = optimizer.state[parameters[name]]
        # The step count stays on the CPU, as AdamW keeps it.
        state[entry] = value.clone() if entry == "step" else like(value, parameters[name])


# --- Writing ---------------------------------------------------------------------------------------


def write_checkpoint(
    run: str,
    attempt: Attempt,
    position: dict[str, int],
    kept: Snapshot,
    described: dict[str, bytes],
    before_last: Callable[[], None] = lambda: None,
) -> str:
    """Write `<run>/checkpoints/step-<step>-<attempt>` and return its URI.

    position: `step` and what the loop needs to go on; described: the files that make the checkpoint
    a model folder, which opens like a finished model. Of averaged weights those are the model's.
    `before_last` may raise while the checkpoint is not whole yet.
    """
    stock, private = split_state({**kept.weights, **kept.averaged})
    files = {
        **described,
        STOCK_FILE: save(stock, metadata={"format": "pt"}),
        **({PRIVATE_FILE: save(private)} if private else {}),
        **({TRAINED_FILE: save(kept.weights)} if kept.averaged else {}),
        OPTIMIZER_FILE: save(kept.optimizer),
        STATE_FILE: json.dumps(position).encode(),
    }
    # The attempt is part of the name: an older one that still writes can't mix its files with ours.
    folder = Run(run).checkpoint(position["step"], attempt)
    storage.remove(folder.manifest)
    for name, data in files.items():
        storage.write_bytes(folder.file(name), data)
    digests = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    before_last()
    storage.write_json(folder.manifest, digests)
    return folder.uri


def remove_checkpoint(uri: str) -> None:
    """Remove a checkpoint, manifest first, so that it is never half there and called whole."""
    storage.remove(CheckpointFolder(uri).manifest)
    storage.remove_folder(uri)


# --- Finding and reading ---------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Found:
    """A checkpoint in the store; the later of two is the one of more steps, then of the newer attempt."""

    step: int
    attempt: Attempt
    uri: str


def checkpoint_uri(run: str, step: int, attempt: Attempt) -> str:
    """Where an attempt puts the checkpoint of a step."""
    return Run(run).checkpoint(step, attempt).uri


def checkpoint_folders(run: str) -> list[Found]:
    """Every checkpoint's folder, half ones too, oldest first."""
    parsed = map(parse_checkpoint, storage.list_folders(Run(run).checkpoints))
    attempts = [(step, parse(attempt)) for step, attempt in filter(None, parsed)]
    return sorted(Found(step, attempt, Run(run).checkpoint(step, attempt).uri) for step, attempt in attempts)


def whole_checkpoints(run: str) -> list[Found]:
    """The checkpoints whose manifest is written and whose files are all there, oldest first."""
    found = checkpoint_folders(run)
    sizes = storage.file_sizes(CheckpointFolder(each.uri).manifest for each in found)
    return [each for each, size in zip(found, sizes, strict=True) if size is not None and _has_its_files(each.uri)]


def _has_its_files(uri: str) -> bool:
    """Whether everything a manifest names is there.

    An attempt that is cut off just before its manifest may write that much later, when a newer one has taken the
    files for half a checkpoint and removed them.
    """
    folder = CheckpointFolder(uri)
    try:
        listed = storage.read_json(folder.manifest)
        bytes_by_name = {name: described["bytes"] for name, described in listed.items()}
    except FileNotFoundError:  # retention came in between
        return False
    except (DamagedFileError, AttributeError, LookupError, TypeError):  # a local file that lost power has no content
        return False
    return storage.file_sizes(map(folder.file, bytes_by_name)) == [*bytes_by_name.values()]


@dataclass(frozen=True)
class Saved:
    """A checkpoint's content: the folded model at the weights that training goes on with, and the rest."""

    model: PreTrainedModel
    optimizer: dict[str, Tensor]
    averaged: dict[str, Tensor]
    position: dict[str, int]


def read_checkpoint(uri: str) -> Saved:
    """Open a checkpoint with nothing but its folder. Raises UserError when a file is damaged."""
    files = read_verified(uri)
    with tempfile.TemporaryDirectory() as copied:
        for name, data in files.items():
            if name not in (*TRAINING_FILES, STATE_FILE):
                (Path(copied) / name).write_bytes(data)
        model = load_model(copied)
    averaged: dict[str, Tensor] = {}
    if TRAINED_FILE in files:
        averaged = {name: each.clone() for name, each in model.state_dict().items() if each.is_floating_point()}
        model.load_state_dict(load(files[TRAINED_FILE]))
    position = storage.parse_json(files[STATE_FILE], CheckpointFolder(uri).state)
    return Saved(model, load(files[OPTIMIZER_FILE]), averaged, position)


def read_verified(uri: str) -> dict[str, bytes]:
    """Every file of a checkpoint, by name. Raises UserError for one that is not what was written."""
    folder = CheckpointFolder(uri)
    files = {}
    for name, expected in storage.read_json(folder.manifest).items():
        files[name] = storage.read_bytes(folder.file(name))
        if hashlib.sha256(files[name]).hexdigest() != expected["sha256"]:
            raise UserError(
                folder.file(name),
                "is damaged (its checksum is wrong); delete this checkpoint and resume",
            )
    return files
