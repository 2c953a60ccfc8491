"""Folded models as folders: a stock checkpoint of the seed, `fold.json` with the plan, and private parts."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from foldray import storage
from foldray.errors import DamagedFileError, UserError, one_line
from foldray.folding.plan import FoldPlan, Private
from foldray.folding.private import split_state
from foldray.models.config_checks import check_config, check_small_files
from foldray.models.families import Family, family_of_config, transformers_class
from foldray.models.features import keep_extractor
from foldray.models.fold import decoder_stack_of, fold, set_depths, stack_of
from foldray.models.hub import fold_folder
from foldray.models.int8 import from_int8
from foldray.models.processor import check_tokenizer, save_processor
from foldray.models.stock import from_pretrained
from foldray.models.tokenizer import Tokenizer
from foldray.models.weight_files import check_finite, check_int8_weights
from foldray.storage.layout import (
    CONFIG_FILE,
    FOLD_FILE,
    GENERATION_FILE,
    INT8_FILE,
    PRIVATE_FILE,
    TRAINING_FILES,
    ModelFolder,
)
from foldray.storage.records import check_as, read_as


def load_model(folder: str | Path, depth: int | None = None) -> PreTrainedModel:
    """Load a folded model from a model folder or a run's checkpoint, in evaluation mode.

    Args:
        folder: A local folder, a URI such as s3://bucket/store/runs/RUN_ID/model, or OWNER/NAME of a fold on the hub.
        depth: Run this depth only, trained or not; all planned ones by default.

    Returns:
        The model; logits are (P*B, T, V), or (B, T, V) with `depth`.

    Raises:
        UserError: The folder has no complete folded model, or the depth has no path.

    Example:
        >>> model = load_model("./foldray-store/runs/an4-1a2b3c4d5e/model", depth=6)
    """
    uri = fold_folder(folder)
    plan, decoder = read_plans(uri)
    with _naming(uri):
        model = _load(uri, plan, decoder)
    if depth is not None:
        set_depths(model, [depth])
    model.eval()
    return model


@contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Turn what a damaged folder raises, in transformers or in folding, into one line that names the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(uri, f"does not load as a folded model: {one_line(error)}; copy or export it again") from error


def _load(uri: str, plan: FoldPlan, decoder: FoldPlan | None) -> PreTrainedModel:
    with storage.local_folder(uri, without=TRAINING_FILES) as local:
        config = _read_config(local, uri)
        family = family_of_config(config)
        if family is None:
            raise UserError(uri, f"is a {config.model_type}, which foldray does not fold")
        state, private = _read_int8(local, uri, family, config)
        model, report = from_pretrained(family, str(local), config, uri, "MODEL", state)
        if state and (local / GENERATION_FILE).exists():
            model.generation_config = transformers_class("GenerationConfig").from_pretrained(local)
        keep_extractor(model, family, str(local))
        check_tokenizer(model, str(local))
        private = private or _read_private(local, uri)
    problems = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if problems:
        raise UserError(uri, f"the weights do not match the configuration: {', '.join(map(str, problems[:3]))}")
    fold(model, plan, decoder)
    load_private(model, private, uri)
    check_finite(model, uri, "MODEL")
    return model


def _read_config(local: Path, uri: str) -> PreTrainedConfig:
    check_small_files(local, "MODEL", uri)
    try:
        config: PreTrainedConfig = transformers_class("AutoConfig").from_pretrained(local, trust_remote_code=False)
    except Exception as error:  # transformers raises errors of many types
        raise UserError(ModelFolder(uri).file(CONFIG_FILE), f"does not load: {one_line(error)}") from None
    check_config(config, ModelFolder(uri).file(CONFIG_FILE))
    return config


def read_plans(uri: str) -> tuple[FoldPlan, FoldPlan | None]:
    """Read the plan of a saved folded model, and that of its decoder if it is folded too.

    Raises UserError if the folder has none.
    """
    file = ModelFolder(uri).fold
    if not storage.exists(file):
        if not storage.is_folder(uri):
            raise UserError(uri, "not found")
        fix = "write one with save_model, or fold a stock checkpoint with fold_checkpoint"
        raise UserError(uri, f"is not a folded model ({FOLD_FILE} is missing); {fix}")
    values = read_as(dict[str, JsonValue], file)
    decoder = values.pop("decoder", None)
    if decoder is not None and not isinstance(decoder, dict):
        raise UserError(file, "is not a fold plan (decoder: must be a plan)")
    return _as_plan(values, file), None if decoder is None else _as_plan(decoder, file)


def _as_plan(values: dict[str, JsonValue], file: str) -> FoldPlan:
    private = values.pop("private", "none")
    if unknown := values.keys() - {each.name for each in fields(FoldPlan)}:
        raise UserError(file, f"is not a fold plan (it has the unknown field {min(unknown)})")
    try:
        parts = Private() if private == "none" else check_as(Private, private, file)
        return replace(check_as(FoldPlan, values, file), private=parts)
    except DamagedFileError as error:
        raise UserError(file, f"is not a fold plan ({error.problem})") from None
    except (TypeError, ValueError) as error:
        raise UserError(file, f"is not a fold plan ({one_line(error)})") from None


def _read_private(folder: Path, uri: str) -> dict[str, Tensor]:
    file = folder / PRIVATE_FILE
    try:
        return load_file(file) if file.exists() else {}
    except (SafetensorError, ValueError) as error:
        raise UserError(ModelFolder(uri).file(PRIVATE_FILE), f"is damaged ({one_line(error)}); copy it again") from None


def _read_int8(
    folder: Path, uri: str, family: Family, config: PreTrainedConfig
) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
    """Stock weights and private parts of an int8 model; None and nothing for any other."""
    file = folder / INT8_FILE
    if not file.exists():
        return None, {}
    try:
        check_int8_weights(family, file, config, uri, "MODEL")
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
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        _describe(model, folder, tokenizer)
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _describe(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer | None) -> None:
    if tokenizer:
        save_processor(model, tokenizer, folder)
    plan, decoder = asdict(stack_of(model).plan), decoder_stack_of(model)
    if decoder is not None:
        plan["decoder"] = asdict(decoder.plan)
    (folder / FOLD_FILE).write_text(json.dumps(plan, indent=1) + "\n")
