"""Checkpoints: safetensors and JSON, no pickle. Data first, the manifest last: it says what is whole."""

import hashlib
import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from foldray import storage
from foldray.errors import UserError

MANIFEST = "manifest.json"


def save_checkpoint(
    run: str,
    step: int,
    position: dict[str, int],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> str:
    """Write `<run>/checkpoints/step-…` and drop all but the newest `keep`. Returns its URI."""
    folder = storage.join(run, "checkpoints", f"step-{step:08d}")
    files = {
        "model.safetensors": save({name: _plain(tensor) for name, tensor in model.state_dict().items()}),
        "optimizer.safetensors": save(_optimizer_tensors(model, optimizer)),
        "state.json": json.dumps({"step": step, **position}).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    digests = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    storage.write_json(storage.join(folder, MANIFEST), digests)
    _retain(run, keep)
    return folder


def whole_checkpoints(run: str) -> list[str]:
    """URIs of the checkpoints whose manifest is written, oldest first."""
    folder = storage.join(run, "checkpoints")
    found = [storage.join(folder, name) for name in storage.list_folders(folder) if name.startswith("step-")]
    return [uri for uri in found if storage.exists(storage.join(uri, MANIFEST))]


def load_checkpoint(uri: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Put a checkpoint's state into model and optimiser; returns its position (step, epoch, epoch_step).

    Raises UserError when a file is damaged.
    """
    files = _read_verified(uri)
    model.load_state_dict(load(files["model.safetensors"]))
    _restore_optimizer(model, optimizer, load(files["optimizer.safetensors"]))
    position: dict[str, int] = json.loads(files["state.json"])
    return position


def _read_verified(uri: str) -> dict[str, bytes]:
    files = {}
    for name, expected in storage.read_json(storage.join(uri, MANIFEST)).items():
        files[name] = storage.read_bytes(storage.join(uri, name))
        if hashlib.sha256(files[name]).hexdigest() != expected["sha256"]:
            raise UserError(
                storage.join(uri, name),
                "is damaged (its checksum is wrong); delete this checkpoint and resume",
            )
    return files


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state under `<parameter>/<entry>`, so that it does not depend on the order of parameters."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": _plain(value)
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        parameter = parameters[name]
        state: dict[str, Any] = optimizer.state[parameter]
        # The step count stays on the CPU, as AdamW keeps it.
        state[entry] = value.clone() if entry == "step" else value.to(parameter.device, copy=True)


def _retain(run: str, keep: int) -> None:
    """Remove old checkpoints, manifest first, so that none is ever half there and called whole."""
    for uri in whole_checkpoints(run)[:-keep]:
        storage.remove(storage.join(uri, MANIFEST))
        storage.remove_folder(uri)
