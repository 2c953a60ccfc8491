"""Text: normalisation, and the units (characters or sub-words) that models write it in."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from foldray.errors import UserError

PAD, UNKNOWN, WORD_BOUNDARY = "<pad>", "<unk>", "|"
END = "<sos/eos>"
"""Starts and ends a sentence in models with a decoder; they have it as one token more, the last."""
_APOSTROPHES = {"\u2019": "'", "\u02bc": "'", "\u2018": "'", "`": "'"}


def normalise(text: str, profile: Literal["english", "unicode"]) -> str:
    """Upper-case words with single spaces.

    `english` keeps A-Z and the apostrophe (accents are dropped from letters), `unicode` keeps every
    letter, combining mark and digit of any script. Everything else separates words.
    """
    form: Literal["NFKD", "NFKC"] = "NFKD" if profile == "english" else "NFKC"
    folded = unicodedata.normalize(form, "".join(_APOSTROPHES.get(c, c) for c in text)).upper()
    if profile == "english":
        kept = ("" if unicodedata.combining(c) else c if "A" <= c <= "Z" or c == "'" else " " for c in folded)
    else:
        kept = (c if unicodedata.category(c)[0] in "LMN" or c == "'" else " " for c in folded)
    words = "".join(kept).split()
    return " ".join(word for word in words if word.strip("'"))


@dataclass(frozen=True)
class Units:
    """What text is written in: tokens by id, with blank (the padding token) and unknown first.

    bpe: for sub-words, the trained tokenizer of the `tokenizers` library as JSON; None for characters.
    """

    vocabulary: list[str]
    bpe: str | None = None

    def __len__(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocabulary)}

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        assert self.bpe is not None
        return Tokenizer.from_str(self.bpe)

    def encode(self, text: str) -> list[int]:
        """Token ids of normalised text; a character that no token covers becomes `<unk>`."""
        if self.bpe is not None:
            ids: list[int] = self._tokenizer.encode(text).ids
            return ids
        return [self._ids.get(WORD_BOUNDARY if c == " " else c, 1) for c in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids without blanks or unknowns, or the end token of a decoder."""
        known = [i for i in ids if 1 < i < len(self)]
        if self.bpe is not None:
            return " ".join(self._tokenizer.decode(known).split())
        tokens = (self.vocabulary[i] for i in known)
        return " ".join("".join(" " if c == WORD_BOUNDARY else c for c in tokens).split())


def character_units(texts: Iterable[str]) -> Units:
    """Blank, unknown, word boundary, then the characters of the texts in order."""
    characters = sorted(set().union(*map(set, texts)) - {" "})
    return Units([PAD, UNKNOWN, WORD_BOUNDARY, *characters])


def bpe_units(texts: Iterable[str], size: int) -> Units:
    """Byte-pair units learned from texts (arXiv 1508.07909): `size` tokens, blank and unknown among them.

    Words begin with "\u2581", as in SentencePiece, so that text comes back as it was. The same texts
    give the same units. Raises UserError where the texts hold fewer pairs than asked for.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ids: dict[str, int] = tokenizer.get_vocab()
    if len(ids) != size:
        raise UserError("corpus.vocab_size", f"the training text gives {len(ids)} units, not {size}; say {len(ids)}")
    return Units(sorted(ids, key=lambda token: ids[token]), tokenizer.to_str())
