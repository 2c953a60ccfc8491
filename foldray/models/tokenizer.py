"""Tokenizers: characters or sub-words, and how they are learned."""

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foldray.errors import UserError

PAD, UNKNOWN, WORD_BOUNDARY = "<pad>", "<unk>", "|"


END = "<sos/eos>"
"""Starts and ends a sentence in models with a decoder; they have it as one token more, the last."""


WORD_START = "\u2581"
"""What a word of sub-words begins with, as in SentencePiece."""


@dataclass(frozen=True)
class Units:
    """What text is written in: tokens by id, with blank (the padding token) and unknown first.

    tokenizer: for sub-words, the trained tokenizer of the `tokenizers` library as JSON; None for characters.
    """

    vocabulary: list[str]
    tokenizer: str | None = None

    def __len__(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits that name these units: a model is of no use with others."""
        return hashlib.sha256(json.dumps([self.vocabulary, self.tokenizer]).encode()).hexdigest()[:12]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocabulary)}

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        assert self.tokenizer is not None
        return Tokenizer.from_str(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of normalised text; a character that no token covers becomes `<unk>`.

        Several such characters in a row are one `<unk>` in unigram units, as in SentencePiece.
        """
        if self.tokenizer is not None:
            ids: list[int] = self._tokenizer.encode(text).ids
            return ids
        return [self._ids.get(WORD_BOUNDARY if c == " " else c, 1) for c in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids without blanks or unknowns, or the end token of a decoder."""
        known = [i for i in ids if 1 < i < len(self)]
        if self.tokenizer is not None:
            text: str = self._tokenizer.decode(known)
            return text
        tokens = (self.vocabulary[i] for i in known)
        return " ".join("".join(" " if c == WORD_BOUNDARY else c for c in tokens).split())


def character_units(texts: Iterable[str]) -> Units:
    """Blank, unknown, word boundary, then the characters of the texts in order."""
    characters = sorted(set().union(*map(set, texts)) - {" "})
    return Units([PAD, UNKNOWN, WORD_BOUNDARY, *characters])


def bpe_units(texts: Iterable[str], size: int) -> Units:
    """Byte-pair units learned from texts (arXiv 1508.07909): `size` tokens, blank and unknown among them.

    The same texts give the same units. Raises UserError naming the nearest size there is, where the
    texts have more characters or fewer pairs: a size is exact or refused, as with SentencePiece.
    """
    from tokenizers import models, trainers

    tokenizer = _of_words(models.BPE(unk_token=UNKNOWN))
    trainer: Any = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _of_size(tokenizer, size)


def unigram_units(texts: Iterable[str], size: int) -> Units:
    """Unigram units learned from texts (arXiv 1804.10959): `size` tokens, blank and unknown among them.

    The same texts give the same units. Raises UserError naming the nearest size there is.

    SentencePiece learns them, as for ESPnet: the trainer in `tokenizers` sums in the random order of a
    hash map, so that its scores differ from run to run, and misses the size. What was learned is run
    by `tokenizers` all the same, to the same ids.
    """
    from tokenizers import models

    lines = sorted(texts)
    least = len({WORD_START}.union(*map(set, lines)) - {" "}) + 2
    learned = _learn_pieces(lines, max(size, least))
    pieces = [(learned.id_to_piece(i), learned.get_score(i)) for i in range(len(learned))]
    tokenizer = _of_words(models.Unigram(pieces, unk_id=1))
    tokenizer.add_special_tokens([PAD, UNKNOWN])
    return _of_size(tokenizer, size)


def _learn_pieces(lines: list[str], size: int) -> Any:
    """A SentencePieceProcessor with at most `size` pieces, blank and unknown first."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=2**20,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece=PAD,
        unk_piece=UNKNOWN,
        num_threads=1,  # more of them sum in another order
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=model.getvalue())


def _of_words(model: Any) -> Any:
    """A tokenizer whose words begin with `WORD_START`, so that text comes back as it was, with single spaces."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    tokenizer: Any = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START)
    # A model may write a word start twice; stock code that decodes with this file is to give the same text.
    # (Not by `decoders.Strip`, which panics on an empty text.)
    single = [decoders.Replace(Regex("^ +| +$"), ""), decoders.Replace(Regex(" +"), " ")]
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(WORD_START), decoders.Fuse(), *single])
    return tokenizer


def _of_size(tokenizer: Any, size: int) -> Units:
    units = tokenizer_units(tokenizer.to_str())
    if len(units) > size:
        raise UserError(
            "corpus.vocab_size", f"{size} are too few for the characters of 'train'; say {len(units)} or more"
        )
    if len(units) < size:
        raise UserError(
            "corpus.vocab_size", f"'train' gives no more than {len(units)} units; say {len(units)} or fewer"
        )
    return units


def tokenizer_units(tokenizer: str) -> Units:
    """The units of a tokenizer's JSON."""
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    if isinstance(vocabulary, dict):  # byte pairs; unigram units are a list of tokens and scores
        return Units(sorted(vocabulary, key=lambda token: vocabulary[token]), tokenizer)
    return Units([token for token, _ in vocabulary], tokenizer)
