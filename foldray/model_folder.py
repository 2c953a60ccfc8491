"""Foldable models as folders: a stock checkpoint of the seed, and `fold.json` that says how to unfold it."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from foldray import storage
from foldray.errors import UserError
from foldray.models import FAMILIES, fold, set_depths, stack_of
from foldray.plan import FoldPlan
from foldray.pretrained import from_pretrained
from foldray.processor import save_processor, transformers_class

FOLD_FILE = "fold.json"


def load_model(uri: str, depth: int | None = None) -> PreTrainedModel:
    """A foldable model from a model folder or a run's checkpoint (local or in a bucket), in evaluation mode.

    With `depth` it runs that depth alone: logits (B, T, V). Raises UserError for a folder that holds
    no foldable model, an incomplete one, or a depth it was not trained for.
    """
    plan = read_plan(uri)
    with storage.local_folder(uri) as folder:
        config = transformers_class("AutoConfig").from_pretrained(folder, trust_remote_code=False)
        family = next((f for f in FAMILIES.values() if f.config == type(config).__name__), None)
        if family is None:
            raise UserError(uri, f"holds a {config.model_type}, which foldray does not fold")
        model, report = from_pretrained(family, str(folder), config)
    problems = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if problems:
        raise UserError(uri, f"the weights do not match the configuration: {', '.join(map(str, problems[:3]))}")
    fold(model, plan)
    if depth is not None:
        set_depths(model, [depth])
    model.eval()
    return model


def read_plan(uri: str) -> FoldPlan:
    """The plan of a saved foldable model. Raises UserError if there is none."""
    if not storage.exists(storage.join(uri, FOLD_FILE)):
        raise UserError(uri, f"holds no foldable model ({FOLD_FILE} is missing); give a run's model/ folder")
    values = storage.read_json(storage.join(uri, FOLD_FILE))
    values.pop("private", None)
    return FoldPlan(**values)


def save_model(model: PreTrainedModel, vocabulary: Sequence[str], folder: Path) -> None:
    """A folder that stock transformers opens as the seed, with `fold.json` beside the weights."""
    model.save_pretrained(folder)
    _describe(model, vocabulary, folder)


def describe_model(model: PreTrainedModel, vocabulary: Sequence[str]) -> dict[str, bytes]:
    """The files of `save_model` except the weights, by name."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model.config.save_pretrained(folder)
        _describe(model, vocabulary, folder)
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _describe(model: PreTrainedModel, vocabulary: Sequence[str], folder: Path) -> None:
    save_processor(model, vocabulary, folder)
    plan = asdict(stack_of(model).plan)
    (folder / FOLD_FILE).write_text(json.dumps({**plan, "private": "none"}, indent=1) + "\n")
