"""Save and read a model's feature extractor and tokenizer."""

import importlib
import json
from pathlib import Path

from foldray import storage
from foldray.models.families import family_of, transformers_class
from foldray.models.features import build_extractor
from foldray.models.folded_model import FoldedModel
from foldray.models.tokenizer import END, PAD, UNKNOWN, Tokenizer, tokenizer_from_json
from foldray.storage.layout import SUBWORDS_FILE, VOCABULARY_FILE, ModelFolder


def save_processor(model: FoldedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Save the stock feature extractor and tokenizer to a model folder, so that stock code runs the model."""
    folder.mkdir(parents=True, exist_ok=True)
    build_extractor(model).save_pretrained(folder)
    end = END if family_of(model).attention else None
    tokens = {"unk_token": UNKNOWN, "pad_token": PAD, "bos_token": end, "eos_token": end}
    if tokenizer.subwords is not None:
        subwords = importlib.import_module("tokenizers").Tokenizer.from_str(tokenizer.subwords)
        transformers_class("ParakeetTokenizer")(tokenizer_object=subwords, **tokens).save_pretrained(folder)
        (folder / SUBWORDS_FILE).write_bytes(tokenizer.subwords.encode())  # without a decoder's end token
        return
    vocab = folder / VOCABULARY_FILE
    vocabulary = [*tokenizer.vocabulary, *([end] if end else [])]
    vocab.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    transformers_class("Wav2Vec2CTCTokenizer")(str(vocab), **tokens).save_pretrained(folder)


def has_tokenizer(uri: str) -> bool:
    """Whether a model folder has a tokenizer."""
    return any(storage.exists(ModelFolder(uri).file(name)) for name in (SUBWORDS_FILE, VOCABULARY_FILE))


def read_tokenizer(uri: str) -> Tokenizer:
    """Read the tokenizer of a saved model."""
    folder = ModelFolder(uri)
    if storage.exists(folder.file(SUBWORDS_FILE)):
        return tokenizer_from_json(storage.read_bytes(folder.file(SUBWORDS_FILE)).decode())
    ids: dict[str, int] = storage.read_json(folder.file(VOCABULARY_FILE))
    return Tokenizer([token for token in sorted(ids, key=lambda token: ids[token]) if token != END])
