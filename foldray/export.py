"""Models to deploy: a fold as it is, one depth of it as a stock model, or the fold with weights of one byte."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from foldray import storage
from foldray.errors import UserError
from foldray.evaluation.provenance import find_model
from foldray.folding.private import PRIVATE_FILE
from foldray.folding.quantization import to_int8
from foldray.model_folder import INT8_FILE, TRAINING_FILES, load_model
from foldray.models import stack_of, unroll
from foldray.plan import FOLD_FILE
from foldray.processor import read_units, save_processor

FORMATS = ("seed", "unrolled", "int8")
STOCK_FILE = "model.safetensors"
CHECKPOINT_FILES = ("state.json", "manifest.json", *TRAINING_FILES)


def export_model(model: str, store: str, kind: str, out: str, depth: int | None = None) -> dict[str, Any]:
    """Write a model into a new folder (or bucket prefix): `model`, `format`, `depths`, `files` with their bytes.

    seed: the fold as it is, which stock transformers opens as its shallowest depth. unrolled: one depth, the deepest
    by default, as a stock model that needs no foldray. int8: the fold, matrices and convolutions as one byte a weight.
    Raises UserError for a folder that is not empty, or a depth that has no path or no say.
    """
    if kind not in FORMATS:
        raise UserError("--format", f"'{kind}' is none of {', '.join(FORMATS)}")
    if depth is not None and kind != "unrolled":
        raise UserError("--depth", f"{kind} holds every depth; leave it out, or take --format unrolled")
    place = storage.absolute(out)
    if storage.list_files(place) or storage.list_folders(place):
        raise UserError("--out", f"{out} is not empty; name a new folder")
    found = find_model(model, store)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        depths = _unrolled(found.uri, folder, depth) if kind == "unrolled" else _folded(found.uri, folder, kind)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        last = "config.json" if kind == "unrolled" else FOLD_FILE
        storage.upload(folder, place, last=last)
    return {"model": place, "format": kind, "depths": depths, "files": files, "bytes": sum(files.values())}


def _unrolled(uri: str, folder: Path, depth: int | None) -> list[int]:
    folded = load_model(uri)
    chosen = depth or stack_of(folded).plan.depths[-1]
    stock = unroll(folded, chosen)
    stock.save_pretrained(folder)
    save_processor(stock, read_units(uri), folder)
    return [chosen]


def _folded(uri: str, folder: Path, kind: str) -> list[int]:
    if kind == "int8" and storage.exists(storage.join(uri, INT8_FILE)):
        raise UserError(uri, "has weights of one byte already")
    model = load_model(uri)  # refuses what is damaged
    with storage.local_folder(uri, without=CHECKPOINT_FILES) as source:
        for file in source.iterdir():
            if file.is_file() and file.name not in CHECKPOINT_FILES:
                shutil.copyfile(file, folder / file.name)
    if kind == "int8":
        small = to_int8(model.state_dict())
        save_file({name: tensor.contiguous() for name, tensor in small.items()}, folder / INT8_FILE)
        for name in (STOCK_FILE, PRIVATE_FILE):
            (folder / name).unlink(missing_ok=True)
    return list(stack_of(model).plan.depths)
