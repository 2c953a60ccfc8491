"""What stands around the weights: the stock feature extractor and tokenizer of a model."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from foldray import storage
from foldray.models import FAMILIES, MEL_BINS
from foldray.spec import SAMPLE_RATE

VOCABULARY_FILE = "vocab.json"


def transformers_class(name: str) -> Any:
    """A class of transformers, or of foldray's own hybrid, by name; the library's progress bars stay off."""
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    own = importlib.import_module("foldray.conformer")  # before any AutoConfig: it registers its configuration there
    return getattr(own if name in own.__all__ else library, name)


def save_processor(model: nn.Module, vocabulary: Sequence[str], folder: Path) -> None:
    """The stock feature extractor and tokenizer beside the weights, so that stock code runs the model."""
    folder.mkdir(parents=True, exist_ok=True)
    build_extractor(model).save_pretrained(folder)
    vocab = folder / VOCABULARY_FILE
    vocab.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    tokens = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": None, "eos_token": None}
    transformers_class("Wav2Vec2CTCTokenizer")(str(vocab), **tokens).save_pretrained(folder)


def build_extractor(model: nn.Module) -> Any:
    """The stock feature extractor whose features this model reads."""
    config: Any = model.config
    family = next(f for f in FAMILIES.values() if f.config == type(config).__name__)
    extractor = transformers_class(family.extractor)
    if family.features == "mel":
        return extractor(feature_size=config.encoder_config.num_mel_bins, sampling_rate=SAMPLE_RATE)
    if family.features == "thirty_seconds":
        seconds = config.max_source_positions // 50  # windows every 10 ms, halved by the front end
        return extractor(feature_size=config.num_mel_bins, chunk_length=seconds, sampling_rate=SAMPLE_RATE)
    if family.features == "stacked_mel":
        stride = config.feature_projection_input_dim // MEL_BINS
        return extractor(num_mel_bins=MEL_BINS, feature_size=MEL_BINS, stride=stride, sampling_rate=SAMPLE_RATE)
    if family.name == "moonshine":
        return extractor(sampling_rate=SAMPLE_RATE, do_normalize=False, return_attention_mask=True)
    # A GroupNorm front end was trained without masks; its outputs change with padding by nature.
    masks = getattr(config, "feat_extract_norm", "layer") == "layer"
    return extractor(sampling_rate=SAMPLE_RATE, do_normalize=True, return_attention_mask=masks)


def read_vocabulary(uri: str) -> list[str]:
    """The tokens of a saved model, by id."""
    ids: dict[str, int] = storage.read_json(storage.join(uri, VOCABULARY_FILE))
    return sorted(ids, key=lambda token: ids[token])
