"""Folded models as folders: a stock checkpoint of the seed, `fold.json` with the plan, and private parts."""

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
    """Load a folded model from a model folder or a run's checkpoint, in evaluation mode.

    Args:
        folder: A local folder or a URI such as s3://bucket/store/runs/RUN_ID/model.
        depth: Run this depth only, trained or not; all planned ones by default.

    Returns:
        The model; logits are (P*B, T, V), or (B, T, V) with `depth`.

    Raises:
        UserError: The folder has no complete folded model, or the depth has no path.

    Example:
        >>> model = load_model("./foldray-store/runs/an4-1a2b3c4d5e/model", depth=6)
    """
    uri = str(folder)
    plan = read_plan(uri)
    with storage.local_folder(uri, without=TRAINING_FILES) as local:
        config = transformers_class("AutoConfig").from_pretrained(local, trust_remote_code=False)
        family = family_of_config(config)
        if family is None:
            raise UserError(uri, f"is a {config.model_type}, which foldray does not fold")
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
    """Read the plan of a saved folded model. Raises UserError if the folder has none."""
    file = ModelFolder(uri).fold
    if not storage.exists(file):
        if not storage.is_folder(uri):
            raise UserError(uri, "not found")
        fix = "write one with save_model, or fold a stock checkpoint with fold_checkpoint"
        raise UserError(uri, f"is not a folded model ({FOLD_FILE} is missing); {fix}")
    values = storage.read_json(file)
    private = values.pop("private", "none")
    try:
        return FoldPlan(**values, private=Private() if private == "none" else Private(**private))
    except (TypeError, ValueError) as error:
        raise UserError(file, f"is not a fold plan ({error})") from None


def _read_private(folder: Path) -> dict[str, Tensor]:
    file = folder / PRIVATE_FILE
    return load_file(file) if file.exists() else {}


def _read_int8(folder: Path, uri: str) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """Stock weights and private parts of an int8 model; None and nothing for any other."""
    file = folder / INT8_FILE
    if not file.exists():
        return None, {}
    try:
        return split_state(from_int8(load_file(file)))
    except (SafetensorError, ValueError) as error:
        raise UserError(ModelFolder(uri).file(INT8_FILE), f"is damaged ({one_line(error)}); export it again") from None


def stored_precision(uri: str) -> str:
    """Get the precision of the weights in a model folder: float32 or int8."""
    return "int8" if storage.exists(ModelFolder(uri).file(INT8_FILE)) else "float32"


def load_private(model: PreTrainedModel, private: dict[str, Tensor], origin: str) -> None:
    """Load private parts into a folded model. Raises UserError for missing, unexpected or misshapen ones."""
    expected = split_state(model.state_dict())[1]
    wrong = set(expected) ^ set(private)
    wrong |= {key for key in expected.keys() & private.keys() if expected[key].shape != private[key].shape}
    if wrong:
        raise UserError(origin, f"{PRIVATE_FILE} does not match {FOLD_FILE}: {', '.join(sorted(wrong)[:3])}")
    model.load_state_dict(private, strict=False)


def save_model(model: PreTrainedModel, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Save a folded model to a folder that stock transformers opens as the seed.

    Args:
        model: A folded model.
        folder: A local folder; gets the stock checkpoint, `fold.json` and the private parts.
        tokenizer: If given, the feature extractor and a stock tokenizer are saved too.

    Raises:
        ValueError: The model is not folded.

    Example:
        >>> save_model(model, "./folded")
        >>> seed = transformers.AutoModelForCTC.from_pretrained("./folded")  # the shallowest depth
    """
    folder = Path(folder)
    stack_of(model)
    stock, private = split_state(model.state_dict())
    model.save_pretrained(folder, state_dict=stock)
    if private:
        save_file({name: tensor.contiguous() for name, tensor in private.items()}, folder / PRIVATE_FILE)
    _describe(model, folder, tokenizer)


def describe_model(model: PreTrainedModel, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Get the files of `save_model` except the weights, by name."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.config.save_pretrained(folder)
        _describe(model, folder, tokenizer)
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _describe(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer | None) -> None:
    if tokenizer:
        save_processor(model, tokenizer, folder)
    plan = asdict(stack_of(model).plan)
    (folder / FOLD_FILE).write_text(json.dumps(plan, indent=1) + "\n")
