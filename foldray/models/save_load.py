"""Foldable models as folders: a stock checkpoint of the seed, `fold.json` that says how to unfold it, private parts."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from foldray import storage
from foldray.errors import UserError, one_line
from foldray.folding.plan import FoldPlan, Private
from foldray.folding.private import split_state
from foldray.models.families import family_of_config, transformers_class
from foldray.models.features import keep_extractor
from foldray.models.fold import fold, set_depths, stack_of
from foldray.models.int8 import from_int8
from foldray.models.processor import save_processor
from foldray.models.stock import from_pretrained
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import FOLD_FILE, INT8_FILE, PRIVATE_FILE, TRAINING_FILES, ModelFolder


def load_model(folder: str | Path, depth: int | None = None) -> PreTrainedModel:
    """A foldable model from a model folder or a run's checkpoint (local or in a bucket), in evaluation mode.

    With `depth` it runs that depth alone, trained or not: logits (B, T, V). Raises UserError for a
    folder that holds no foldable model, an incomplete one, or a depth that has no path.
    """
    uri = str(folder)
    plan = read_plan(uri)
    with storage.local_folder(uri, without=TRAINING_FILES) as local:
        config = transformers_class("AutoConfig").from_pretrained(local, trust_remote_code=False)
        family = family_of_config(config)
        if family is None:
            raise UserError(uri, f"holds a {config.model_type}, which foldray does not fold")
        state, private = _read_int8(local, uri)
        model, report = from_pretrained(family, str(local), config, uri, "MODEL", state)
        if state and (local / "generation_config.json").exists():
            model.generation_config = transformers_class("GenerationConfig").from_pretrained(local)
        keep_extractor(model, family, str(local))
        private = private or _read_private(local)
    problems = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if problems:
        raise UserError(uri, f"the weights do not match the configuration: {', '.join(map(str, problems[:3]))}")
    fold(model, plan)
    load_private(model, private, uri)
    if depth is not None:
        set_depths(model, [depth])
    model.eval()
    return model


def read_plan(uri: str) -> FoldPlan:
    """The plan of a saved foldable model. Raises UserError if there is none."""
    file = ModelFolder(uri).fold
    if not storage.exists(file):
        if not storage.is_folder(uri):
            raise UserError(uri, "is not there")
        mend = "write one with save_model, or fold a stock checkpoint with fold_checkpoint"
        raise UserError(uri, f"holds no foldable model ({FOLD_FILE} is missing); {mend}")
    values = storage.read_json(file)
    private = values.pop("private", "none")
    try:
        return FoldPlan(**values, private=Private() if private == "none" else Private(**private))
    except (TypeError, ValueError) as error:
        raise UserError(file, f"is no fold plan ({error})") from None


def _read_private(folder: Path) -> dict[str, Tensor]:
    file = folder / PRIVATE_FILE
    return load_file(file) if file.exists() else {}


def _read_int8(folder: Path, uri: str) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """Stock weights and private parts of a model whose weights were stored as one byte each; nothing of another."""
    file = folder / INT8_FILE
    if not file.exists():
        return None, {}
    try:
        return split_state(from_int8(load_file(file)))
    except (SafetensorError, ValueError) as error:
        raise UserError(ModelFolder(uri).file(INT8_FILE), f"is damaged ({one_line(error)}); export it anew") from None


def stored_precision(uri: str) -> str:
    """What the weights in a model folder are stored as: float32 or int8."""
    return "int8" if storage.exists(ModelFolder(uri).file(INT8_FILE)) else "float32"


def load_private(model: PreTrainedModel, private: dict[str, Tensor], origin: str) -> None:
    """Put saved private parts into a folded model. Raises UserError for missing, surplus or misshapen ones."""
    expected = split_state(model.state_dict())[1]
    wrong = set(expected) ^ set(private)
    wrong |= {key for key in expected.keys() & private.keys() if expected[key].shape != private[key].shape}
    if wrong:
        raise UserError(origin, f"{PRIVATE_FILE} does not match {FOLD_FILE}: {', '.join(sorted(wrong)[:3])}")
    model.load_state_dict(private, strict=False)


def save_model(model: PreTrainedModel, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """A folder that stock transformers opens as the seed, with `fold.json` and the private parts beside the weights.

    tokenizer: where given, the feature extractor and a stock tokenizer are written too.
    Raises ValueError for a model that is not folded.
    """
    folder = Path(folder)
    stack_of(model)
    stock, private = split_state(model.state_dict())
    model.save_pretrained(folder, state_dict=stock)
    if private:
        save_file({name: tensor.contiguous() for name, tensor in private.items()}, folder / PRIVATE_FILE)
    _describe(model, folder, tokenizer)


def describe_model(model: PreTrainedModel, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of `save_model` except the weights, by name."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model.config.save_pretrained(folder)
        _describe(model, folder, tokenizer)
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _describe(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer | None) -> None:
    if tokenizer:
        save_processor(model, tokenizer, folder)
    plan = asdict(stack_of(model).plan)
    (folder / FOLD_FILE).write_text(json.dumps(plan, indent=1) + "\n")
