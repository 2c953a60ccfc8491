"""What stands around the weights: the stock feature extractor and tokenizer of a model."""

import importlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from foldray import storage
from foldray.data.text import END, PAD, UNKNOWN, Units, tokenizer_units
from foldray.errors import UserError
from foldray.families import Family, family_of, transformers_class
from foldray.models import MEL_BINS
from foldray.spec import SAMPLE_RATE

VOCABULARY_FILE, SUBWORDS_FILE = "vocab.json", "subwords.json"


def save_processor(model: nn.Module, units: Units, folder: Path) -> None:
    """The stock feature extractor and tokenizer beside the weights, so that stock code runs the model."""
    folder.mkdir(parents=True, exist_ok=True)
    build_extractor(model).save_pretrained(folder)
    end = END if family_of(model).kind != "ctc" else None
    tokens = {"unk_token": UNKNOWN, "pad_token": PAD, "bos_token": end, "eos_token": end}
    if units.tokenizer is not None:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_str(units.tokenizer)
        transformers_class("ParakeetTokenizer")(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
        (folder / SUBWORDS_FILE).write_bytes(units.tokenizer.encode())  # without a decoder's end token
        return
    vocab = folder / VOCABULARY_FILE
    vocabulary = [*units.vocabulary, *([end] if end else [])]
    vocab.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    transformers_class("Wav2Vec2CTCTokenizer")(str(vocab), **tokens).save_pretrained(folder)


def keep_extractor(model: Any, family: Family, source: str) -> None:
    """Remember the feature extractor that lies beside a checkpoint (a folder or hub name), if there is one.

    Checkpoints of one family differ in it: WavLM base reads audio as it is, WavLM large normalised.
    Raises UserError for one of another rate.
    """
    try:
        extractor = transformers_class(family.extractor).from_pretrained(source)
    except OSError:
        return
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(source, f"reads audio at {extractor.sampling_rate} Hz; foldray prepares {SAMPLE_RATE}")
    model.extractor = extractor


def build_extractor(model: nn.Module) -> Any:
    """The stock feature extractor whose features this model reads: the one it came with, or its family's usual one."""
    if (own := getattr(model, "extractor", None)) is not None:
        return own
    config: Any = model.config
    family = family_of(model)
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


def has_units(uri: str) -> bool:
    """Whether a saved model says what it writes in."""
    return any(storage.exists(storage.join(uri, name)) for name in (SUBWORDS_FILE, VOCABULARY_FILE))


def read_units(uri: str) -> Units:
    """What a saved model writes in."""
    if storage.exists(storage.join(uri, SUBWORDS_FILE)):
        return tokenizer_units(storage.read_bytes(storage.join(uri, SUBWORDS_FILE)).decode())
    ids: dict[str, int] = storage.read_json(storage.join(uri, VOCABULARY_FILE))
    return Units([token for token in sorted(ids, key=lambda token: ids[token]) if token != END])
