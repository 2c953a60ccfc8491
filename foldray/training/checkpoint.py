"""Checkpoints: safetensors and JSON, no pickle. Data first, the manifest last: it says what is whole."""

import hashlib
import json
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from foldray import storage
from foldray.errors import UserError
from foldray.folding.private import PRIVATE_FILE, split_state

MANIFEST = "manifest.json"


def save_checkpoint(
    run: str,
    position: dict[str, int],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    described: dict[str, bytes],
    keep: int,
) -> None:
    """Write `<run>/checkpoints/step-…` and drop all but the newest `keep`.

    position: `step` and what the loop needs to go on; described: the files that make the checkpoint
    a model folder, which opens like a finished model.
    """
    stock, private = split_state({name: _plain(tensor) for name, tensor in model.state_dict().items()})
    files = {
        **described,
        "model.safetensors": save(stock, metadata={"format": "pt"}),
        **({PRIVATE_FILE: save(private)} if private else {}),
        "optimizer.safetensors": save(_optimizer_tensors(model, optimizer)),
        "state.json": json.dumps(position).encode(),
    }
    folder = _folder(run, position["step"])
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
    digests = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    storage.write_json(storage.join(folder, MANIFEST), digests)
    _retain(run, keep)


def _folder(run: str, step: int) -> str:
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def whole_checkpoints(run: str) -> list[tuple[int, str]]:
    """Step and URI of the checkpoints whose manifest is written, oldest first."""
    names = storage.list_folders(storage.join(run, "checkpoints"))
    steps = sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-"))
    found = [(step, _folder(run, step)) for step in steps]
    return [(step, uri) for step, uri in found if storage.exists(storage.join(uri, MANIFEST))]


def load_checkpoint(run: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Put a checkpoint's state into model and optimiser; returns its position.

    Raises UserError when a file is damaged.
    """
    files = _read_verified(_folder(run, step))
    private = load(files[PRIVATE_FILE]) if PRIVATE_FILE in files else {}
    model.load_state_dict({**load(files["model.safetensors"]), **private})
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
    for _, uri in whole_checkpoints(run)[:-keep]:
        storage.remove(storage.join(uri, MANIFEST))
        storage.remove_folder(uri)
