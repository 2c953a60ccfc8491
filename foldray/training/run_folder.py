"""What a run's folder holds: its checkpoints and its final model. Imports no torch."""

from dataclasses import dataclass

from pydantic import BaseModel

from foldray import storage
from foldray.errors import DamagedFileError, UserError
from foldray.storage.layout import CheckpointFolder, Run, parse_checkpoint
from foldray.storage.records import read_as
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
    try:
        listed = listed_files(uri)
    except (FileNotFoundError, DamagedFileError):  # removed by retention, or without content after a power loss
        return False
    sizes = storage.file_sizes(map(CheckpointFolder(uri).file, listed))
    return sizes == [file.bytes for file in listed.values()]


class ListedFile(BaseModel):
    """A file in the manifest of a checkpoint."""

    bytes: int
    sha256: str


def listed_files(uri: str) -> dict[str, ListedFile]:
    """The files that a checkpoint's manifest lists, by name.

    Raises:
        FileNotFoundError: The checkpoint has no manifest.
        DamagedFileError: The manifest is damaged.
        UserError: It names a file outside the checkpoint's folder, which resuming would write.
    """
    file = CheckpointFolder(uri).manifest
    listed = read_as(dict[str, ListedFile], file)
    if unsafe := [name for name in listed if not storage.is_plain(name)]:
        raise UserError(file, f"names {unsafe[0]!r}, which is not a file of this checkpoint; do not trust this run")
    return listed


def remove_checkpoint(uri: str) -> None:
    """Remove a checkpoint, its manifest first: it never looks complete while files are missing."""
    storage.remove(CheckpointFolder(uri).manifest)
    storage.remove_folder(uri)
