"""Stock checkpoints in and foldable models out: building, loading with a strict report, saving."""

import copy
import difflib
import importlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.errors import UserError
from foldray.folding.account import DepthCost, depth_costs
from foldray.folding.seed import seed_layers
from foldray.models import (
    FAMILIES,
    MEL_BINS,
    Family,
    encoder_config,
    family_of,
    fold,
    output_frames,
    stack_of,
)
from foldray.plan import FoldPlan
from foldray.spec import SAMPLE_RATE, ModelSpec

FOLD_FILE = "fold.json"
VOCABULARY_FILE = "vocab.json"


# --- Building --------------------------------------------------------------------------------------


def stock_config(spec: ModelSpec, num_layers: int, vocab_size: int) -> Any:
    """The transformers configuration of the seed, from the family's defaults and `model.config`.

    Raises UserError naming the field that transformers does not know or refuses.
    """
    family = FAMILIES[spec.family]
    config_class = _transformers(family.config)
    nested = family.name == "parakeet"
    shape_class = _transformers("ParakeetEncoderConfig") if nested else config_class
    _check_known(spec.config, shape_class())
    shape = {**spec.config, "num_hidden_layers": num_layers}
    tokens = {"vocab_size": vocab_size, "pad_token_id": 0}
    try:
        return config_class(encoder_config=shape, **tokens) if nested else config_class(**shape, **tokens)
    except Exception as error:
        raise UserError("model.config", f"transformers refuses it: {' '.join(str(error).split())[:160]}") from None


def _check_known(fields: dict[str, Any], defaults: Any) -> None:
    known = [name for name in vars(defaults) if not name.startswith("_")]
    for name in fields:
        if name == "num_hidden_layers":
            raise UserError("model.config.num_hidden_layers", "say fold.num_layers instead")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise UserError(f"model.config.{name}", f"{type(defaults).__name__} has no such field{hint}")


def write_random_checkpoint(
    spec: ModelSpec, num_layers: int, vocabulary: Sequence[str], seed: int, folder: Path
) -> None:
    """A complete stock checkpoint with random weights: model, feature extractor and tokenizer."""
    config = stock_config(spec, num_layers, len(vocabulary))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _transformers(FAMILIES[spec.family].model)(config)
        initialise_for_width(model)
    model.save_pretrained(folder)
    save_processor(model, vocabulary, folder)


def initialise_for_width(model: nn.Module) -> None:
    """torch's own initialisation of linear and convolution layers, in place.

    transformers draws with a standard deviation of 0.02 whatever the width, which starves narrow
    models: on AN4 at width 96, 36 % WER after 60 epochs against 35 % after 25 with torch's.
    """
    for module in model.modules():
        parametrised = hasattr(module, "parametrizations")
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and not parametrised:
            module.reset_parameters()


def meta_model(spec: ModelSpec, num_layers: int, vocab_size: int) -> PreTrainedModel:
    """The stock model without memory behind it: shapes to count, nothing to run."""
    with torch.device("meta"):
        model = _transformers(FAMILIES[spec.family].model)(stock_config(spec, num_layers, vocab_size))
    assert isinstance(model, PreTrainedModel)
    return model


# --- Loading ---------------------------------------------------------------------------------------


def load_seed(
    spec: ModelSpec, checkpoint: str, num_layers: int, vocabulary: Sequence[str], seed: int
) -> tuple[PreTrainedModel, list[str]]:
    """A stock model with `num_layers` blocks out of a stock checkpoint, and the keys that start anew.

    Only a CTC head of another vocabulary may start anew; any other missing, surplus or misshapen key
    raises UserError. `checkpoint` is a local folder or a hub name.
    """
    family = FAMILIES[spec.family]
    config = _checkpoint_config(family, checkpoint)
    _check_known(spec.config, getattr(config, "encoder_config", config))
    for name, value in spec.config.items():
        setattr(getattr(config, "encoder_config", config), name, value)
    config.vocab_size, config.pad_token_id = len(vocabulary), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, report = _from_pretrained(family, checkpoint, config)
    fresh = _check_report(family, report, checkpoint)
    _take_layers(model, family, spec, num_layers)
    return model, fresh


def check_model(spec: ModelSpec, num_layers: int) -> None:
    """Raise UserError for a configuration transformers refuses or a checkpoint that does not open; loads no weights."""
    stock_config(spec, num_layers, vocab_size=1)
    if spec.checkpoint:
        config = _checkpoint_config(FAMILIES[spec.family], spec.checkpoint)
        available = getattr(config, "encoder_config", config).num_hidden_layers
        _choose_layers(available, num_layers, spec)


def _choose_layers(available: int, num_layers: int, spec: ModelSpec) -> list[int]:
    try:
        return seed_layers(available, num_layers, spec.seed_layers)
    except ValueError as error:
        raise UserError("fold.num_layers", str(error)) from None


def _checkpoint_config(family: Family, checkpoint: str) -> Any:
    try:
        config = _transformers("AutoConfig").from_pretrained(checkpoint)
    except Exception as error:
        raise UserError(
            "model.checkpoint", f"{checkpoint} does not open: {' '.join(str(error).split())[:160]}"
        ) from None
    if type(config).__name__ != family.config:
        raise UserError("model.checkpoint", f"{checkpoint} is a {config.model_type}, not model.family={family.name}")
    return config


def _from_pretrained(family: Family, checkpoint: str, config: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        model, report = _transformers(family.model).from_pretrained(
            checkpoint,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise UserError(
            "model.checkpoint", f"{checkpoint} does not load: {' '.join(str(error).split())[:160]}"
        ) from None
    return model, report


def _check_report(family: Family, report: dict[str, Any], checkpoint: str) -> list[str]:
    """Names of the head's keys that start anew; anything else in the load report raises UserError."""
    misshapen = {str(entry[0]) for entry in report["mismatched_keys"]}
    missing = {str(key) for key in report["missing_keys"]} | misshapen
    surplus = {str(key) for key in report["unexpected_keys"] if not str(key).startswith(family.surplus)}
    head = {key for key in missing if key.startswith(f"{family.head}.")}
    # The mask vector is only used in training and has no weights worth keeping.
    masks = {key for key in missing if key.endswith("masked_spec_embed")}
    for kind, keys in (("missing or misshapen", missing - head - masks), ("surplus", surplus)):
        if keys:
            shown = ", ".join(sorted(keys)[:3])
            raise UserError("model.checkpoint", f"{checkpoint} has {len(keys)} {kind} keys, such as {shown}")
    return sorted(head | masks)


def _take_layers(model: PreTrainedModel, family: Family, spec: ModelSpec, num_layers: int) -> None:
    encoder: Any = model.get_submodule(family.encoder)
    chosen = _choose_layers(len(encoder.layers), num_layers, spec)
    encoder.layers = nn.ModuleList(encoder.layers[i] for i in chosen)
    encoder_config(model).num_hidden_layers = num_layers


def load_model(uri: str, depth: int | None = None) -> PreTrainedModel:
    """A foldable model from a model folder (local or in a bucket), in evaluation mode.

    With `depth` it runs that depth alone: logits (B, T, V). Raises UserError for a folder that holds
    no foldable model, an incomplete one, or a depth it was not trained for.
    """
    folder, plan = open_model_folder(uri)
    with folder:
        config = _transformers("AutoConfig").from_pretrained(folder.path)
        family = next((f for f in FAMILIES.values() if f.config == type(config).__name__), None)
        if family is None:
            raise UserError(uri, f"holds a {config.model_type}, which foldray does not fold")
        model, report = _from_pretrained(family, str(folder.path), config)
    problems = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if problems:
        raise UserError(uri, f"the weights do not match the configuration: {', '.join(map(str, problems[:3]))}")
    fold(model, plan)
    if depth is not None:
        set_depths(model, [depth])
    model.eval()
    return model


class LocalFolder:
    """A local view of a folder: itself, or a temporary copy of a bucket's that goes when closed."""

    def __init__(self, uri: str) -> None:
        self._copy = None if storage.is_local(uri) else tempfile.TemporaryDirectory()
        self.path = Path(self._copy.name) if self._copy else Path(storage.absolute(uri))
        if self._copy:
            storage.download(uri, self.path)

    def __enter__(self) -> "LocalFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._copy:
            self._copy.cleanup()


def open_model_folder(uri: str) -> tuple[LocalFolder, FoldPlan]:
    """The files of a saved foldable model and its plan. Raises UserError if it is none."""
    if not storage.exists(storage.join(uri, FOLD_FILE)):
        raise UserError(uri, f"holds no foldable model ({FOLD_FILE} is missing); give a run's model/ folder")
    values = storage.read_json(storage.join(uri, FOLD_FILE))
    values.pop("private", None)
    return LocalFolder(uri), FoldPlan(**values)


def set_depths(model: nn.Module, depths: Sequence[int]) -> None:
    """Choose which depths of its plan a folded model runs from now on. Raises UserError for one not planned."""
    stack = stack_of(model)
    for depth in depths:
        if depth not in stack.plan.depths:
            trained = ", ".join(map(str, stack.plan.depths))
            raise UserError("depth", f"{depth} was not trained; this model has {trained}")
    stack.run_depths = tuple(depths)


def read_vocabulary(uri: str) -> list[str]:
    """The tokens of a saved model, by id."""
    ids: dict[str, int] = storage.read_json(storage.join(uri, VOCABULARY_FILE))
    return sorted(ids, key=lambda token: ids[token])


# --- Saving ----------------------------------------------------------------------------------------


def save_model(model: PreTrainedModel, vocabulary: Sequence[str], folder: Path) -> None:
    """A folder that stock transformers opens as the seed, with `fold.json` beside the weights."""
    plan = stack_of(model).plan
    model.save_pretrained(folder)
    save_processor(model, vocabulary, folder)
    (folder / FOLD_FILE).write_text(json.dumps({**asdict(plan), "private": "none"}, indent=1) + "\n")


def save_processor(model: nn.Module, vocabulary: Sequence[str], folder: Path) -> None:
    """The stock feature extractor and tokenizer beside the weights, so that stock code runs the model."""
    folder.mkdir(parents=True, exist_ok=True)
    build_extractor(model).save_pretrained(folder)
    vocab = folder / VOCABULARY_FILE
    vocab.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    tokens = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": None, "eos_token": None}
    _transformers("Wav2Vec2CTCTokenizer")(str(vocab), **tokens).save_pretrained(folder)


def build_extractor(model: nn.Module) -> Any:
    """The stock feature extractor whose features this model reads."""
    config: Any = model.config
    name = next(f.name for f in FAMILIES.values() if f.config == type(config).__name__)
    extractor = _transformers(FAMILIES[name].extractor)
    if name == "parakeet":
        return extractor(feature_size=config.encoder_config.num_mel_bins, sampling_rate=SAMPLE_RATE)
    if name == "wav2vec2-bert":
        stride = config.feature_projection_input_dim // MEL_BINS
        return extractor(num_mel_bins=MEL_BINS, feature_size=MEL_BINS, stride=stride, sampling_rate=SAMPLE_RATE)
    # A GroupNorm front end was trained without masks; its outputs change with padding by nature.
    masks = config.feat_extract_norm == "layer"
    return extractor(sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=masks)


def _transformers(name: str) -> Any:
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return getattr(library, name)


# --- Accounting ------------------------------------------------------------------------------------

MACS_SECONDS = 10.0


def plan_costs(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> list[DepthCost]:
    """The cost of every depth of a fold, from the configuration alone."""
    return _costs(meta_model(spec, plan.num_layers, vocab_size), plan)


def costs_of(model: PreTrainedModel) -> list[DepthCost]:
    """The cost of every depth of a folded model."""
    with torch.device("meta"):
        shape = type(model)(copy.deepcopy(model.config))
    return _costs(shape, stack_of(model).plan)


def _costs(shape: PreTrainedModel, plan: FoldPlan) -> list[DepthCost]:
    model = fold(shape, plan)
    model.eval()
    return depth_costs(model, stack_of(model), _meta_inputs(model), MACS_SECONDS)


def _meta_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """One utterance of ten seconds (attention's share grows with length; ten is usual for read speech)."""
    samples = int(MACS_SECONDS * SAMPLE_RATE)
    config: Any = model.config
    shapes = {
        "parakeet": lambda: (1, samples // 160, config.encoder_config.num_mel_bins),
        "wav2vec2-bert": lambda: (1, output_frames(model, [samples])[0], config.feature_projection_input_dim),
    }
    family = family_of(model)
    shape = shapes.get(family.name, lambda: (1, samples))()
    return {family.inputs: torch.empty(shape, device="meta")}
