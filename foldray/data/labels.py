"""How many labels a text has: the tokenizer of a shard's task, and what it makes of a text."""

import functools
import itertools
from collections.abc import Sequence

from foldray.models.tokenizer import Tokenizer, tokenizer_from_json
from foldray.storage.layout import PreparedCorpus
from foldray.storage.records import read_as


def task_tokenizer(units: str, subwords: str | None, folder: str) -> Tokenizer | None:
    """The tokenizer of a task that writes a shard into the prepared corpus `folder`; None for characters."""
    if units == "checkpoint":
        return _read_tokenizer(PreparedCorpus(folder).tokenizer)
    return _learned(subwords) if subwords else None


@functools.lru_cache(maxsize=1)
def _learned(subwords: str) -> Tokenizer:
    return tokenizer_from_json(subwords)


@functools.lru_cache(maxsize=1)
def _read_tokenizer(file: str) -> Tokenizer:
    return read_as(Tokenizer, file)


def count_labels(text: str, tokenizer: Tokenizer | None) -> tuple[int, int]:
    """Labels of a text, and how many equal the one before; without a tokenizer every character is a label."""
    ids: Sequence[int | str] = tokenizer.encode(text) if tokenizer else text
    return len(ids), sum(a == b for a, b in itertools.pairwise(ids))
