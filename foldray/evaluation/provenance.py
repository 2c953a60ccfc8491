"""Find a model by run id, URI or folder, and where it came from."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import TypedDict  # pydantic checks no other before Python 3.12

from foldray import storage
from foldray.config.run_files import read_run_facts, read_run_spec
from foldray.errors import DamagedFileError, UserError
from foldray.models.hub import copy_fold, is_page
from foldray.results.metrics import read_metrics
from foldray.storage.layout import CheckpointFolder, ModelFolder, Run, Store
from foldray.storage.records import check_as, read_as

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FoundModel:
    """A model folder and where it came from.

    Attributes:
        uri: The model folder.
        name: The id of its run, or the name of the folder or of its page on the hub.
        store: The root of the store that its result rows go to.
        run: URI of its run; None for exported and other folders.
        step: The step of a checkpoint; None for a final model.
    """

    uri: str
    name: str
    store: str
    run: str | None = None
    step: int | None = None


def find_model(model: str, store: str) -> FoundModel:
    """Find a model by run id, run URI, checkpoint URI, folder or OWNER/NAME on the hub.

    Raises:
        UserError: There is none; lists the finished runs, or says what the hub answers.
    """
    home = Store(store)
    for uri in (storage.absolute(model), *([home.run(model).uri] if storage.is_relative(model) else [])):
        if found := _model_at(uri, home):
            return found
    runs = storage.list_folders(home.runs)
    if model in runs:
        raise UserError(
            model, "is not finished; train it with the command that started it, or name one of its checkpoints"
        )
    if is_page(model) and not storage.is_folder(model):
        return FoundModel(str(copy_fold(model)), storage.split(model)[1], home.root)
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


class Provenance(TypedDict):
    """What is known about the training of a model."""

    recipe: str
    alpha: float
    beta: float
    train_seconds: float
    train_audio_seconds: float
    step: int
    seed: int
    versions: str  # JSON object of package versions
    git_commit: str
    spec_hash: str


UNKNOWN: Provenance = {
    "recipe": "",
    "alpha": 0.0,
    "beta": 0.0,
    "train_seconds": 0.0,
    "train_audio_seconds": 0.0,
    "step": 0,
    "seed": 0,
    "versions": "",
    "git_commit": "",
    "spec_hash": "",
}
"""Of a folder that neither a run nor an export describes."""


class ExportRecord(Provenance):
    """The contents of `export.json`: what was exported, and the training it came from."""

    run_id: str
    format: str
    depths: list[int]


def provenance(found: FoundModel) -> Provenance:
    """Read the provenance of a model from its run, or from the folder it was exported to."""
    if found.run is None:
        return _export_record(found) or UNKNOWN
    spec = read_run_spec(found.run)
    facts = read_run_facts(found.run)
    metrics = [record for record in read_metrics(found.run) if found.step is None or record["step"] <= found.step]
    return {
        "recipe": spec.name,
        "alpha": spec.loss.alpha,
        "beta": spec.loss.beta,
        "train_seconds": sum(record["seconds"] for record in metrics),
        "train_audio_seconds": sum(record["audio_seconds"] for record in metrics),
        "step": metrics[-1]["step"],
        "seed": spec.seed,
        "versions": json.dumps(facts.versions),
        "git_commit": facts.git_commit,
        "spec_hash": facts.spec_hash,
    }


def _export_record(found: FoundModel) -> ExportRecord | None:
    file = ModelFolder(found.uri).export
    if not storage.exists(file):
        return None
    record = read_as(ExportRecord, file)
    if not storage.is_plain(record["run_id"]):  # it becomes the name of files and folders
        raise DamagedFileError(file, f"is damaged (run_id: {record['run_id']!r} is not the id of a run)")
    check_as(dict[str, str], storage.parse_json(record["versions"] or "{}", file), file)
    return record


def run_id_of(found: FoundModel) -> str:
    """The id of the run that a model, exported or not, came from; the folder's name if unknown."""
    exported = None if found.run else _export_record(found)
    return exported["run_id"] if exported else found.name


def trained_by(found: FoundModel) -> str | None:
    """The folder of the run that a model, exported or not, came from, if it is in the store."""
    if found.run or not (exported := _export_record(found)):
        return found.run
    run = Store(found.store).run(exported["run_id"])
    return run.uri if storage.exists(run.facts) else None


def weights_digest(model: "nn.Module") -> str:
    """Ten hexadecimal digits of all weights, to tell models apart that do not come from a run."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:10]
