"""Which model is scored, and what the run it came from says of it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from foldray import storage
from foldray.config.load import build_spec
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.results.metrics import read_metrics
from foldray.storage.layout import CheckpointFolder, ModelFolder, Run, Store


@dataclass(frozen=True)
class FoundModel:
    """A model folder, and the run it came from where there is one; `step` where it is a checkpoint."""

    uri: str
    name: str
    store: str
    run: str | None = None
    step: int | None = None


def find_model(model: str, store: str) -> FoundModel:
    """The model behind a run id, a run or checkpoint URI, or a folder. Raises UserError listing what there is."""
    home = Store(store)
    for uri in (storage.absolute(model), home.run(model).uri):
        if found := _model_at(uri, home):
            return found
    runs = storage.list_folders(home.runs)
    if model in runs:
        raise UserError(
            model, "is not finished; train it with the command that started it, or name one of its checkpoints"
        )
    done = ", ".join(run for run in runs if storage.exists(home.run(run).model.fold))
    raise UserError(
        model, f"is neither a finished run nor a model folder; finished runs in {home.root}: {done or 'none'}"
    )


def _model_at(uri: str, home: Store) -> FoundModel | None:
    """The model of a run, checkpoint or folder; rows of one outside any store go to `home`."""
    run, step = Run.owning(uri), CheckpointFolder(uri).step
    if step is not None and storage.exists(ModelFolder(uri).fold):
        return FoundModel(uri, run.run_id, (run.store or home).root, run.uri, step)
    if not storage.exists(run.facts):  # a folder that happens to be called `model`
        run = Run(uri)
    if storage.exists(run.model.fold):
        return FoundModel(run.model.uri, run.run_id, (run.store or home).root, run.uri)
    if storage.exists(ModelFolder(uri).fold):
        return FoundModel(uri, storage.split(uri)[1], home.root)
    return None


def provenance(found: FoundModel) -> dict[str, Any]:
    """What the run says of itself, or what an exported folder says of its run; zeros and blanks for another folder."""
    run = found.run
    if run is None:
        blanks: dict[str, Any] = {
            **dict.fromkeys(("recipe", "versions", "git_commit", "spec_hash"), ""),
            **dict.fromkeys(("alpha", "beta", "train_seconds", "train_audio_seconds"), 0.0),
            **dict.fromkeys(("step", "seed"), 0),
        }
        told = _told_by_export(found)
        return {name: told.get(name, blank) for name, blank in blanks.items()}
    spec = read_run_spec(run)
    facts = storage.read_json(Run(run).facts)
    metrics = [record for record in read_metrics(run) if found.step is None or record["step"] <= found.step]
    return {
        "recipe": spec.name,
        "alpha": spec.loss.alpha,
        "beta": spec.loss.beta,
        "train_seconds": sum(record["seconds"] for record in metrics),
        "train_audio_seconds": sum(record["audio_seconds"] for record in metrics),
        "step": metrics[-1]["step"],
        "seed": spec.seed,
        "versions": json.dumps(facts["versions"]),
        "git_commit": facts["git_commit"],
        "spec_hash": facts["spec_hash"],
    }


def _told_by_export(found: FoundModel) -> dict[str, Any]:
    file = ModelFolder(found.uri).export
    told: dict[str, Any] = storage.read_json(file) if storage.exists(file) else {}
    return told


def run_id_of(found: FoundModel) -> str:
    """The run that a model came from, exported or not; the folder's name where nothing says."""
    return found.name if found.run else str(_told_by_export(found).get("run_id", found.name))


def trained_by(found: FoundModel) -> str | None:
    """The folder of the run that a model, exported or not, came from, where the store has it."""
    if found.run or not (told := _told_by_export(found)):
        return found.run
    run = Store(found.store).run(str(told.get("run_id")))
    return run.uri if storage.exists(run.facts) else None


def read_run_spec(run: str) -> RunSpec:
    """The spec a run was started with."""
    file = Run(run).spec
    return build_spec(storage.read_json(file), file)


def weights_digest(model: Any) -> str:
    """Ten hexadecimal digits of all weights, with which models that come from no run are told apart."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:10]
