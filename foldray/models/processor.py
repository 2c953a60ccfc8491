"""Save and read a model's feature extractor and tokenizer."""

import importlib
import json
from pathlib import Path

from foldray import storage
from foldray.errors import DamagedFileError, UserError, one_line
from foldray.models.config_checks import MOST_SMALL_BYTES
from foldray.models.families import family_of, family_of_config, transformers_class
from foldray.models.features import build_extractor
from foldray.models.folded_model import FoldedModel
from foldray.models.stock_config import read_config
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.models.tokenizer import END, PAD, UNKNOWN, Tokenizer, check_subwords, tokenizer_from_json, without_code
from foldray.storage.layout import (
    STOCK_TOKENIZER_FILE,
    SUBWORDS_FILE,
    TOKENIZER_SETTINGS_FILE,
    VOCABULARY_FILE,
    ModelFolder,
)
from foldray.storage.records import read_as


def save_processor(model: FoldedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Save the stock feature extractor and tokenizer to a model folder, so that stock code runs the model."""
    folder.mkdir(parents=True, exist_ok=True)
    build_extractor(model).save_pretrained(folder)
    if tokenizer.special:
        (folder / STOCK_TOKENIZER_FILE).write_text(str(tokenizer.subwords), encoding="utf-8")
        (folder / TOKENIZER_SETTINGS_FILE).write_text(without_code(tokenizer.special.settings), encoding="utf-8")
        return
    end = END if family_of(model).attention else None
    tokens = {"unk_token": UNKNOWN, "pad_token": PAD, "bos_token": end, "eos_token": end}
    if tokenizer.subwords is not None:
        subwords = importlib.import_module("tokenizers").Tokenizer.from_str(tokenizer.subwords)
        transformers_class("ParakeetTokenizer")(tokenizer_object=subwords, **tokens).save_pretrained(folder)
        (folder / SUBWORDS_FILE).write_bytes(tokenizer.subwords.encode())  # without a decoder's end token
        return
    vocab = folder / VOCABULARY_FILE
    vocabulary = [*tokenizer.vocabulary, *([end] if end else [])]
    vocab.write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False), encoding="utf-8")
    transformers_class("Wav2Vec2CTCTokenizer")(str(vocab), **tokens).save_pretrained(folder)


def has_tokenizer(uri: str) -> bool:
    """Whether a model folder has a tokenizer."""
    names = (SUBWORDS_FILE, VOCABULARY_FILE, STOCK_TOKENIZER_FILE)
    return any(storage.exists(ModelFolder(uri).file(name)) for name in names)


def read_tokenizer(uri: str) -> Tokenizer:
    """Read the tokenizer of a saved model. Raises DamagedFileError naming its file."""
    folder = ModelFolder(uri)
    subwords = folder.file(SUBWORDS_FILE)
    if storage.exists(subwords):
        content = storage.read_bounded(subwords, MOST_SMALL_BYTES)
        try:
            tokenizer = tokenizer_from_json(content.decode())
            check_subwords(tokenizer)
        except Exception as error:  # the library of sub-words raises its own
            raise DamagedFileError(subwords, f"is damaged ({one_line(error)}); export the model again") from None
        return tokenizer
    # The files of Whisper on the hub include a vocab.json, which is none of characters.
    kind = family_of_config(read_config(uri)) if storage.exists(folder.file(STOCK_TOKENIZER_FILE)) else None
    if kind and kind.seq2seq:
        return read_stock_tokenizer(uri, uri)
    if not storage.exists(folder.file(VOCABULARY_FILE)):
        raise UserError(uri, "has no tokenizer; copy that of the model it was folded from beside it")
    ids = read_as(dict[str, int], folder.file(VOCABULARY_FILE), MOST_SMALL_BYTES)
    return Tokenizer([token for token in sorted(ids, key=lambda token: ids[token]) if token != END])


def check_tokenizer(model: FoldedModel, uri: str) -> None:
    """Check that the tokenizer of a saved model spells what its CTC head means.

    Raises:
        UserError: The head has outputs without a token, which would be dropped in silence, its blank is not token 0
            (recipes for wav2vec 2.0 put `[PAD]` last), or ids of the vocabulary are missing or used twice.
    """
    if not family_of(model).ctc or not has_tokenizer(uri):
        return
    outputs = model.config.vocab_size - bool(family_of(model).attention)
    tokenizer = read_tokenizer(uri)
    if len(tokenizer) < outputs:
        problem = f"its tokenizer has {len(tokenizer)} tokens, its head {outputs} outputs; copy both from one model"
        raise UserError(uri, problem)
    if tokenizer.subwords is None:
        _check_ids(read_as(dict[str, int], ModelFolder(uri).file(VOCABULARY_FILE), MOST_SMALL_BYTES), model, uri)


def _check_ids(ids: dict[str, int], model: FoldedModel, uri: str) -> None:
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(uri, f"{VOCABULARY_FILE} does not number its tokens 0, 1, 2 and so on; copy it again")
    if blank := model.config.pad_token_id:
        named = next((token for token, number in ids.items() if number == blank), "no token")
        fix = "name its checkpoint in model.checkpoint and train, which makes a new head"
        raise UserError(uri, f"its CTC blank is token {blank} ({named}), that of foldray is token 0; {fix}")
