"""The stage `export`: a foldable model, also with int8 weights, or one depth for transformers or an ONNX runtime."""

import json
import tempfile
from pathlib import Path
from typing import TypedDict

from pydantic import JsonValue
from safetensors.torch import load_file, save_file

from foldray import storage
from foldray.errors import UserError
from foldray.evaluation.provenance import ExportRecord, FoundModel, find_model, provenance, run_id_of
from foldray.models.fold import stack_of, unroll
from foldray.models.folded_model import FoldedModel
from foldray.models.int8 import to_int8
from foldray.models.onnx import write_onnx
from foldray.models.processor import has_tokenizer, read_tokenizer, save_processor
from foldray.models.runtimes.layouts import RUNTIMES, quantize, write_layout
from foldray.models.save_load import load_model, save_model, stored_precision
from foldray.models.tokenizer import Tokenizer
from foldray.runtime.extras import check_extra
from foldray.storage.layout import (
    CONFIG_FILE,
    EXPORT_FILE,
    FOLD_FILE,
    INT8_FILE,
    ONNX_FILE,
    PRIVATE_FILE,
    README_FILE,
    STOCK_FILE,
    ModelFolder,
)
from foldray.storage.records import read_as

FORMATS = ("seed", "unrolled", "onnx", *RUNTIMES, "int8")
GRAPHS = ("onnx", *RUNTIMES)
ONE_DEPTH = ("unrolled", *GRAPHS)
PRECISIONS = ("float32", "int8")


class ExportedModel(TypedDict):
    """A model that was written to a folder.

    Attributes:
        model: The folder.
        format: One of FORMATS.
        depths: The depths that it can run.
        files: Bytes of each file, by name.
        bytes: Bytes of all files.
    """

    model: str
    format: str
    depths: list[int]
    files: dict[str, int]
    bytes: int


def export_model(
    model: str, store: str, kind: str, out: str, depth: int | None = None, precision: str = "float32"
) -> ExportedModel:
    """Write a model to a new folder or bucket prefix, with the provenance of its run in `export.json`.

    Args:
        model: A run id in the store, a run or checkpoint URI, or a model folder.
        store: The store that run ids refer to.
        kind: `seed`: the foldable model, which stock transformers opens as its shallowest depth. `unrolled`: one depth
            as a stock model. `onnx`: the CTC logits of one depth (`foldray.models.onnx`). `onnx-asr`, `sherpa-onnx`:
            one depth as these runtimes read it (`foldray.models.runtimes`). `int8`: the foldable model with one byte
            for each weight of matrices and convolutions.
        out: The new folder.
        depth: The depth of all but `seed` and `int8`; the deepest by default.
        precision: `float32`, or `int8` for int8 matrix products in the three ONNX formats.

    Raises:
        UserError: The folder has other files, the depth is invalid, an option does not apply, or a runtime does not
            read the family.
    """
    _check_options(kind, depth, precision)
    place = storage.absolute(out)
    if storage.exists(place) and not storage.is_folder(place):
        raise UserError("--out", f"{out} is a file; name a new folder")
    mark = README_FILE if kind in RUNTIMES else CONFIG_FILE if kind in ONE_DEPTH else FOLD_FILE
    is_whole = storage.exists(ModelFolder(place).file(mark))
    if is_whole or storage.list_folders(place) or _exported(place) not in ("", kind):
        raise _not_empty(out)  # before a model is loaded
    found = find_model(model, store)
    if kind == "int8" and stored_precision(found.uri) == "int8":
        raise UserError(model, "is an int8 export already; export the original model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        depths = write_export(found, folder, kind, depth, precision)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        _check_place(place, out, files.keys() - {mark})
        storage.upload(folder, place, last=mark)
    return {"model": place, "format": kind, "depths": depths, "files": files, "bytes": sum(files.values())}


def _check_options(kind: str, depth: int | None, precision: str) -> None:
    """Raise UserError for an unknown option, one that does not apply, or a missing package."""
    if kind not in FORMATS:
        raise UserError("--format", f"must be one of {', '.join(FORMATS)} (got '{kind}')")
    if depth is not None and kind not in ONE_DEPTH:
        raise UserError("--depth", f"{kind} contains every depth; leave --depth out, or use --format unrolled or onnx")
    if precision not in PRECISIONS:
        raise UserError("--precision", f"must be one of {', '.join(PRECISIONS)} (got '{precision}')")
    if precision != "float32" and kind not in GRAPHS:
        raise UserError("--precision", f"applies to {', '.join(GRAPHS)}; --format int8 is the fold with int8 weights")
    if kind in GRAPHS:
        check_extra("onnx", "onnx", "onnxscript", "onnxruntime", where="--format", what=kind)


def _check_place(place: str, out: str, expected: set[str]) -> None:
    """Raise UserError for a folder with files that are not of an interrupted export of the same kind."""
    if storage.list_folders(place) or set(storage.list_files(place)) - expected:
        raise _not_empty(out)
    storage.check_writable(place, "--out")


def _exported(place: str) -> str:
    """Return the format of the export in a folder, whole or interrupted; "" if there is none."""
    file = ModelFolder(place).export
    return str(read_as(dict[str, JsonValue], file).get("format")) if storage.exists(file) else ""


def _not_empty(out: str) -> UserError:
    return UserError("--out", f"{out} is not empty; name a new folder")


def write_export(
    found: FoundModel, folder: Path, kind: str, depth: int | None = None, precision: str = "float32"
) -> list[int]:
    """Write an export to a local folder; see `export_model`. Returns the depths that it can run."""
    folded = load_model(found.uri)
    tokenizer = read_tokenizer(found.uri) if has_tokenizer(found.uri) else None
    plan = stack_of(folded).plan
    if kind in ONE_DEPTH:
        depths = [plan.depths[-1] if depth is None else depth]
        if kind in RUNTIMES and tokenizer is None:
            raise UserError(found.uri, f"has no tokenizer, which {kind} needs; copy that of its checkpoint into it")
        _write_depth(unroll(folded, depths[0]), tokenizer, folder, kind, precision)
    else:
        depths = list(plan.depths)
        save_model(folded, folder, tokenizer)
        if kind == "int8":
            _shrink(folder)
    record: ExportRecord = {**provenance(found), "run_id": run_id_of(found), "format": kind, "depths": depths}
    (folder / EXPORT_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return depths


def _write_depth(stock: FoldedModel, tokenizer: Tokenizer | None, folder: Path, kind: str, precision: str) -> None:
    if kind in RUNTIMES:
        assert tokenizer
        write_layout(stock, tokenizer, folder, kind, precision)
        return
    if kind == "onnx":
        write_onnx(stock, folder / ONNX_FILE)
        if precision == "int8":
            quantize(folder / ONNX_FILE)
        stock.config.save_pretrained(folder)
    else:
        stock.save_pretrained(folder)
    if tokenizer:
        save_processor(stock, tokenizer, folder)


def _shrink(folder: Path) -> None:
    """Replace the weights and private parts of a model folder with one file of int8 weights."""
    # From the saved files, because a state dict has tied weights twice.
    weights = [file for file in (folder / STOCK_FILE, folder / PRIVATE_FILE) if file.exists()]
    small = to_int8({name: tensor for file in weights for name, tensor in load_file(file).items()})
    save_file({name: tensor.contiguous() for name, tensor in small.items()}, folder / INT8_FILE)
    for file in weights:
        file.unlink()
