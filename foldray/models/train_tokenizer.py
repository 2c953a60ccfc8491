"""Learning a tokenizer from texts: characters, byte pairs, or a unigram model."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from foldray.errors import UserError
from foldray.models.tokenizer import BAR, PAD, UNKNOWN, WORD_BOUNDARY, WORD_START, Tokenizer, tokenizer_from_json

if TYPE_CHECKING:
    import tokenizers
    from sentencepiece import SentencePieceProcessor


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Build a character tokenizer: blank, unknown, word boundary, then the characters of the texts, sorted.

    The character `|` has the token `||`, because `|` itself is the word boundary.
    """
    characters = sorted(set().union(*map(set, texts)) - {" "})
    return Tokenizer([PAD, UNKNOWN, WORD_BOUNDARY, *(BAR if c == WORD_BOUNDARY else c for c in characters)])


def bpe_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn byte pairs from texts (arXiv 1508.07909): `size` tokens, including blank and unknown.

    The same texts give the same tokenizer.

    Raises:
        UserError: The texts have too many characters or too few pairs for `size`; names the nearest possible size.
            A size is exact or refused, as in SentencePiece.
    """
    from tokenizers import models, trainers

    subwords = _of_words(models.BPE(unk_token=UNKNOWN))
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    subwords.train_from_iterator(texts, trainer)
    return _of_size(subwords, size)


def unigram_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn a unigram model from texts (arXiv 1804.10959): `size` tokens, including blank and unknown.

    The same texts give the same tokenizer. SentencePiece trains the model, as in ESPnet: the trainer in
    `tokenizers` sums in the random order of a hash map, so that its scores differ from run to run, and it
    misses the requested size. `tokenizers` then runs the trained model and gives the same ids.

    Raises:
        UserError: `size` is not possible for these texts; names the nearest possible size.
    """
    from tokenizers import models

    lines = sorted(texts)
    least = len({WORD_START}.union(*map(set, lines)) - {" "}) + 2
    learned = _learn_pieces(lines, max(size, least))
    pieces = [(learned.id_to_piece(i), learned.get_score(i)) for i in range(len(learned))]
    subwords = _of_words(models.Unigram(pieces, unk_id=1))
    subwords.add_special_tokens([PAD, UNKNOWN])
    return _of_size(subwords, size)


def _learn_pieces(lines: list[str], size: int) -> "SentencePieceProcessor":
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


def _of_words(model: "tokenizers.models.Model") -> "tokenizers.Tokenizer":
    """A `tokenizers` tokenizer whose words begin with `WORD_START`, so that decoding restores the text exactly."""
    import tokenizers
    from tokenizers import Regex, decoders, pre_tokenizers

    subwords = tokenizers.Tokenizer(model)
    subwords.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START)
    # A model may emit a word start twice; stock code that decodes with this file must give the same text.
    # (`decoders.Strip` would panic on an empty text.)
    single = [decoders.Replace(Regex("^ +| +$"), ""), decoders.Replace(Regex(" +"), " ")]
    subwords.decoder = decoders.Sequence([decoders.Metaspace(WORD_START), decoders.Fuse(), *single])
    return subwords


def _of_size(subwords: "tokenizers.Tokenizer", size: int) -> Tokenizer:
    tokenizer = tokenizer_from_json(subwords.to_str())
    if len(tokenizer) > size:
        raise UserError(
            "corpus.vocab_size", f"{size} is too few for the characters of 'train'; set it to {len(tokenizer)} or more"
        )
    if len(tokenizer) < size:
        raise UserError(
            "corpus.vocab_size",
            f"'train' gives at most {len(tokenizer)} sub-words; set it to {len(tokenizer)} or fewer",
        )
    return tokenizer
