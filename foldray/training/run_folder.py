"""What a run's folder holds: its checkpoints and its final model. Imports no torch."""

from dataclasses import dataclass

from foldray import storage
from foldray.errors import DamagedFileError
from foldray.storage.layout import CheckpointFolder, Run, parse_checkpoint
from foldray.training.fencing import Attempt


@dataclass(frozen=True, order=True)
class CheckpointRef:
    """A checkpoint in the store. Ordered by step, then by attempt."""

    step: int
    attempt: Attempt
    uri: str


def is_finished(run: str) -> bool:
    """Return whether the final model of a run is complete."""
    return storage.exists(Run(run).model.fold)


def checkpoint_uri(run: str, step: int, attempt: Attempt) -> str:
    """Return the URI of an attempt's checkpoint."""
    return Run(run).checkpoint(step, attempt).uri


def checkpoint_folders(run: str) -> list[CheckpointRef]:
    """List all checkpoints of a run, incomplete ones too, oldest first."""
    parsed = filter(None, map(parse_checkpoint, storage.list_folders(Run(run).checkpoints)))
    attempts = [(step, Attempt.parse(attempt)) for step, attempt in parsed]
    return sorted(CheckpointRef(step, attempt, checkpoint_uri(run, step, attempt)) for step, attempt in attempts)


def whole_checkpoints(run: str) -> list[CheckpointRef]:
    """List the checkpoints whose manifest and files are all there, oldest first."""
    found = checkpoint_folders(run)
    sizes = storage.file_sizes(CheckpointFolder(each.uri).manifest for each in found)
    return [each for each, size in zip(found, sizes, strict=True) if size is not None and _has_its_files(each.uri)]


def _has_its_files(uri: str) -> bool:
    """Return whether every file that a manifest names exists with its size.

    An attempt that is cut off just before its manifest may write that much later, after a newer attempt has removed
    the files as those of an incomplete checkpoint.
    """
    folder = CheckpointFolder(uri)
    try:
        listed = storage.read_json(folder.manifest)
        bytes_by_name = {name: described["bytes"] for name, described in listed.items()}
    except FileNotFoundError:  # removed meanwhile by retention
        return False
    except (DamagedFileError, AttributeError, LookupError, TypeError):  # a local file has no content after a power loss
        return False
    return storage.file_sizes(map(folder.file, bytes_by_name)) == [*bytes_by_name.values()]


def remove_checkpoint(uri: str) -> None:
    """Remove a checkpoint, its manifest first: it never looks complete while files are missing."""
    storage.remove(CheckpointFolder(uri).manifest)
    storage.remove_folder(uri)
