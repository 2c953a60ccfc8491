"""Checkpoints as safetensors and JSON, without pickle. The manifest is written last: it marks a complete checkpoint."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.errors import UserError, one_line
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
)
from foldray.storage.records import check_as
from foldray.training.cursor import Cursor
from foldray.training.fencing import Attempt
from foldray.training.parallel import is_sharded, like, whole
from foldray.training.run_folder import listed_files

# --- The state in memory ---------------------------------------------------------------------------


@dataclass(frozen=True)
class StateSnapshot:
    """Copies in host memory of all tensors that training resumes from."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    averaged: dict[str, Tensor]


def take_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, averaged: dict[str, Tensor], *, first: bool
) -> StateSnapshot | None:
    """Copy the state for a checkpoint. Collective for a sharded model.

    Args:
        model: The model in training.
        optimizer: Its optimizer.
        averaged: The moving average of the weights; empty without one.
        first: Whether this is rank 0, which keeps the copies.

    Returns:
        The copies on rank 0, None elsewhere.
    """
    if not first and not is_sharded(model):
        return None
    copies = [
        _copy_tensors(tensors, first=first)
        for tensors in (model.state_dict(), _optimizer_tensors(model, optimizer), averaged)
    ]
    return StateSnapshot(*copies) if first else None


def _copy_tensors(tensors: dict[str, Tensor], *, first: bool) -> dict[str, Tensor]:
    """Gather each tensor and copy it to host memory; ranks other than 0 only take part in the gathering."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if first:
            copies[name] = gathered.to("cpu", copy=True).contiguous()
    return copies


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `<parameter>/<entry>`, independent of the order of parameters."""
    # Sorted: all workers must gather sharded tensors in one order, and a loaded file has none.
    return {
        f"{name}/{entry}": value
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for entry, value in sorted(optimizer.state[parameter].items())
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load an optimizer's saved state, on each parameter's device and in its sharding."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        state: dict[str, Tensor] = optimizer.state[parameters[name]]
        # The step count stays on the CPU, as AdamW keeps it.
        state[entry] = value.clone() if entry == "step" else like(value, parameters[name])


# --- Writing ---------------------------------------------------------------------------------------


def write_checkpoint(
    run: str,
    attempt: Attempt,
    cursor: Cursor,
    snapshot: StateSnapshot,
    model_files: dict[str, bytes],
    before_manifest: Callable[[], None] = lambda: None,
) -> str:
    """Write `<run>/checkpoints/step-<step>-<attempt>`.

    Args:
        run: URI of the run.
        attempt: The attempt that writes.
        cursor: The step to resume with.
        snapshot: The tensors. With a moving average the folder's model has the averaged weights.
        model_files: Configuration files that make the checkpoint a model folder, which opens like a finished model.
        before_manifest: Called before the manifest is written; may raise to leave the checkpoint incomplete.

    Returns:
        URI of the checkpoint.
    """
    stock, private = split_state({**snapshot.weights, **snapshot.averaged})
    files = {
        **model_files,
        STOCK_FILE: save(stock, metadata={"format": "pt"}),
        **({PRIVATE_FILE: save(private)} if private else {}),
        **({TRAINED_FILE: save(snapshot.weights)} if snapshot.averaged else {}),
        OPTIMIZER_FILE: save(snapshot.optimizer),
        STATE_FILE: json.dumps(vars(cursor)).encode(),
    }
    # The attempt is part of the name: an older one that still writes cannot mix its files with ours.
    folder = Run(run).checkpoint(cursor.step, attempt)
    storage.remove(folder.manifest)
    for name, data in files.items():
        storage.write_bytes(folder.file(name), data)
    digests = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    before_manifest()
    storage.write_json(folder.manifest, digests)
    return folder.uri


# --- Reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedCheckpoint:
    """Content of a checkpoint; `model` has the weights that training resumes from, not the averaged ones."""

    model: PreTrainedModel
    optimizer: dict[str, Tensor]
    averaged: dict[str, Tensor]
    cursor: Cursor


def read_checkpoint(uri: str) -> LoadedCheckpoint:
    """Load a checkpoint; nothing but its folder is needed. Raises UserError if a file is damaged."""
    try:
        return _load_checkpoint(uri, read_verified(uri))
    except UserError:
        raise
    except Exception as error:  # a file is missing, or its content is not of this run
        raise UserError(uri, f"is damaged ({one_line(error)}); delete this checkpoint and resume") from error


def _load_checkpoint(uri: str, files: dict[str, bytes]) -> LoadedCheckpoint:
    with tempfile.TemporaryDirectory() as copied:
        for name, data in files.items():
            if name not in (*TRAINING_FILES, STATE_FILE):
                (Path(copied) / name).write_bytes(data)
        try:
            model = load_model(copied)
        except UserError as error:  # names files of the copy
            raise UserError(error.where.replace(copied, uri), error.problem.replace(copied, uri)) from None
    averaged: dict[str, Tensor] = {}
    if TRAINED_FILE in files:
        averaged = {name: each.clone() for name, each in model.state_dict().items() if each.is_floating_point()}
        model.load_state_dict(load(files[TRAINED_FILE]))
    state = CheckpointFolder(uri).state
    cursor = check_as(Cursor, storage.parse_json(files[STATE_FILE], state), state)
    return LoadedCheckpoint(model, load(files[OPTIMIZER_FILE]), averaged, cursor)


def read_verified(uri: str) -> dict[str, bytes]:
    """Return every file of a checkpoint, by name. Raises UserError if a name or a checksum is wrong."""
    folder = CheckpointFolder(uri)
    files = {}
    for name, listed in listed_files(uri).items():
        files[name] = storage.read_bytes(folder.file(name))
        if hashlib.sha256(files[name]).hexdigest() != listed.sha256:
            raise UserError(
                folder.file(name),
                "is damaged (its checksum is wrong); delete this checkpoint and resume",
            )
    return files
