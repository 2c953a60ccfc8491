"""The tokenizer of a stock checkpoint with a decoder: its text tokens, its prompt and its end."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foldray import storage
from foldray.errors import DamagedFileError, UserError, one_line
from foldray.models.config_checks import MOST_SMALL_BYTES
from foldray.models.families import family_of_config
from foldray.models.hub import copy_tokenizer
from foldray.models.stock_config import find_checkpoint, is_hub_name, read_config
from foldray.models.tokenizer import SpecialTokens, Tokenizer, check_subwords, without_code, without_panic
from foldray.storage.layout import GENERATION_FILE, STOCK_TOKENIZER_FILE, TOKENIZER_SETTINGS_FILE
from foldray.storage.records import check_as

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_LANGUAGE = "en"
"""Language of utterances whose corpus names none, in multilingual models."""


def read_stock_tokenizer(checkpoint: str, where: str = "corpus.tokenizer") -> Tokenizer:
    """Read the tokenizer of a stock checkpoint with a decoder, such as Whisper or Moonshine.

    Args:
        checkpoint: A folder, a URI or a hub name.
        where: The field that errors name.

    Returns:
        The tokenizer with its special tokens; its ids are the checkpoint's own.

    Raises:
        UserError: There is none, it is damaged, or the model's text does not come from a decoder.

    Example:
        >>> read_stock_tokenizer("openai/whisper-tiny.en").special.prompt("")
        [50257, 50362]
    """
    place = find_checkpoint(checkpoint)
    config = read_config(place)
    place = str(copy_tokenizer(place)) if is_hub_name(place) else place
    family = family_of_config(config)
    if family is None or not family.seq2seq:
        raise UserError(where, f"{checkpoint} is a {config.model_type}, whose text comes from no decoder")
    text = _read(place, STOCK_TOKENIZER_FILE)
    if text is None:
        fix = "write it with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)"
        raise UserError(where, f"{checkpoint} has no {STOCK_TOKENIZER_FILE}; {fix}")
    try:
        bare = Tokenizer(_vocabulary(text), text)
        check_subwords(bare)
    except Exception as error:  # the library of sub-words raises its own
        raise UserError(where, f"{checkpoint}: {STOCK_TOKENIZER_FILE} is damaged ({one_line(error)})") from None
    if len(bare) > config.vocab_size:
        problem = f"has {len(bare)} tokens, the model {config.vocab_size}; take both from one checkpoint"
        raise UserError(where, f"{checkpoint}: {STOCK_TOKENIZER_FILE} {problem}")
    return replace(bare, special=_special(place, config, where))


def _read(place: str, name: str) -> str | None:
    """The text of a file of a folder or URI; None where it is missing."""
    file = storage.join(place, name)
    if not storage.exists(file):
        return None
    try:
        return storage.read_bounded(file, MOST_SMALL_BYTES).decode()
    except UnicodeDecodeError:
        raise DamagedFileError(file, "is damaged (it is not UTF-8); copy it again") from None


def _vocabulary(text: str) -> list[str]:
    """Tokens by id, added ones included."""
    import tokenizers

    with without_panic():
        ids = tokenizers.Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError("its ids are not 0, 1, 2 and so on")
    return sorted(ids, key=lambda token: ids[token])


def _special(place: str, config: "PreTrainedConfig", where: str) -> SpecialTokens:
    """Raise UserError naming the file if an id is missing or no token of the model."""
    settings = _read(place, TOKENIZER_SETTINGS_FILE) or "{}"
    # Not through its class, which drops the fields of one family.
    generation = _parsed(place, GENERATION_FILE, _read(place, GENERATION_FILE) or "{}")
    try:
        start = _id(generation.get("decoder_start_token_id"), config.decoder_start_token_id)
        end = _id(generation.get("eos_token_id"), config.eos_token_id)
        prompts = _prompts(generation, start)
        most = int(getattr(config, "max_target_positions", None) or config.max_position_embeddings)
    except (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
        problem = f"lacks a token of the prompt or the end ({type(error).__name__}: {one_line(error)})"
        raise UserError(where, f"{place}/{GENERATION_FILE} {problem}") from None
    used = [end, *(number for prompt in prompts.values() for number in prompt)]
    if not all(0 <= number < config.vocab_size for number in used) or most <= max(map(len, prompts.values())):
        raise UserError(where, f"{place}/{GENERATION_FILE} names tokens or lengths that the model does not have")
    settings = without_code(json.dumps(_parsed(place, TOKENIZER_SETTINGS_FILE, settings)))
    return SpecialTokens(prompts, end, most, settings)


def _parsed(place: str, name: str, text: str) -> dict[str, Any]:
    file = f"{place}/{name}"
    return check_as(dict[str, Any], storage.parse_json(text, file), file)


def _prompts(generation: dict[str, Any], start: int) -> dict[str, list[int]]:
    """Prompts by language: start, language, task, "no times", as far as the model has them (arXiv 2212.04356, 2.3)."""
    quiet = generation.get("no_timestamps_token_id")
    ending = [] if quiet is None else [int(quiet)]
    languages, tasks = generation.get("lang_to_id") or {}, generation.get("task_to_id") or {}
    if not languages:
        return {"": [start, *ending]}
    prompts = {
        token.strip("<|>"): [start, int(number), int(tasks["transcribe"]), *ending]
        for token, number in languages.items()
    }
    return {"": prompts.get(DEFAULT_LANGUAGE) or next(iter(prompts.values())), **prompts}


def _id(*values: Any) -> int:
    """The first value that is there; of several ids the first."""
    found = next(value for value in values if value is not None)
    return int(found[0] if isinstance(found, list) else found)
