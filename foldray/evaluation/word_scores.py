"""Scores of words for the beam search over CTC: an n-gram, hotwords, a closed list."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from foldray.errors import UserError
from foldray.evaluation.beam_options import (
    HOTWORD_WEIGHT,
    LM_WEIGHT,
    WORD_BONUS,
    BeamOptions,
    digest,
    read_words,
    spell,
)
from foldray.evaluation.ngram import NgramModel, read_arpa
from foldray.evaluation.prefix_search import Prefix, log_add, search_prefixes
from foldray.models.tokenizer import BAR, WORD_BOUNDARY, WORD_START, Tokenizer

END = "</s>"


class Words(NamedTuple):
    """The words of a prefix.

    Attributes:
        bonus: What they add to the log-probability of CTC, with a hotword that has only begun.
        ended: What the words that have ended add.
        begun: The letters of a word that has not ended.
        state: The n-gram's state after the words that have ended.
    """

    bonus: float
    ended: float
    begun: str
    state: Any


@dataclass(frozen=True)
class LanguageModel:
    """An n-gram with its weights.

    Attributes:
        cased: The n-gram's words by the model's spelling of them, where the two are not equal.
    """

    ngram: NgramModel
    weight: float
    word_bonus: float
    cased: Mapping[str, str]

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """What a word adds after a state, and the state after it."""
        log_prob, after = self.ngram.score(state, self.cased.get(word, word))
        return self.weight * log_prob + (0.0 if word == END else self.word_bonus), after


def _boundary(tokenizer: Tokenizer) -> int:
    """The token between words. Raises UserError for a tokenizer of characters without it."""
    if WORD_BOUNDARY not in tokenizer.vocabulary:
        problem = f"beam needs words, and the model's characters have no '{WORD_BOUNDARY}' between them; use ctc"
        raise UserError("--decoding", problem)
    return tokenizer.vocabulary.index(WORD_BOUNDARY)


class WordScorer:
    """Scores the words of prefixes; the scorer of `search_prefixes`.

    Args:
        tokenizer: Characters or sub-words, with blank as token 0.
        lm: An n-gram: every word that ends adds its weighted log-probability and the bonus.
        hotwords: Words that add `hotword_weight` each. A word that has only begun to match adds its share: a hotword
            must stay in the beam until it ends.
        hotword_weight: In nats.
        words: The only words that may be found; None for any.
    """

    least = -12.0
    """Six times in a million."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        lm: LanguageModel | None = None,
        hotwords: Iterable[str] = (),
        hotword_weight: float = HOTWORD_WEIGHT,
        words: frozenset[str] | None = None,
    ) -> None:
        self.tokenizer, self.lm, self.hotword_weight, self.words = tokenizer, lm, hotword_weight, words
        self.hotwords = frozenset(hotwords)
        self._share = _shares(self.hotwords, hotword_weight)
        self._beginnings = None if words is None else {word[:end] for word in words for end in range(len(word) + 1)}
        self._pieces = _pieces(tokenizer)
        self.boundary = None if tokenizer.subwords else _boundary(tokenizer)
        self.most_gain = max(lm.word_bonus if lm else 0.0, 0.0) + (hotword_weight if self.hotwords else 0.0)

    def start(self) -> Words:
        """No words."""
        return Words(0.0, 0.0, "", self.lm.ngram.start() if self.lm else None)

    def extend(self, context: Words, token: int) -> Words | None:
        """The words with one more token; None if the closed list has no word that begins so."""
        begins, piece = self._pieces.get(token, (False, ""))
        after = self.end_word(context) if begins else context
        if after is None or not piece:
            return after
        begun = after.begun + piece
        if self._beginnings is not None and begun not in self._beginnings:
            return None
        return Words(after.ended + self._share.get(begun, 0.0), after.ended, begun, after.state)

    def end_word(self, context: Words) -> Words | None:
        """The words after the end of one; None if it is not in the closed list."""
        word = context.begun
        if not word:
            return context
        if self.words is not None and word not in self.words:
            return None
        gain, state = self.lm.score(context.state, word) if self.lm else (0.0, None)
        ended = context.ended + gain + (self.hotword_weight if word in self.hotwords else 0.0)
        return Words(ended, ended, "", state)

    def finish(self, context: Words) -> float | None:
        """What all words and the end of the sentence add; None if the last word is not in the closed list."""
        after = self.end_word(context)
        if after is None:
            return None
        return after.ended + (self.lm.score(after.state, END)[0] if self.lm else 0.0)


def _pieces(tokenizer: Tokenizer) -> dict[int, tuple[bool, str]]:
    """By token id: whether the word before ends, and the letters of the token. Blank and unknown have none."""
    if tokenizer.subwords:
        return {
            i: (piece.startswith(WORD_START), piece.removeprefix(WORD_START))
            for i, piece in enumerate(tokenizer.vocabulary)
            if i > 1
        }
    special = {WORD_BOUNDARY: (True, ""), BAR: (False, WORD_BOUNDARY)}
    return {i: special.get(token, (False, token)) for i, token in enumerate(tokenizer.vocabulary) if i > 1}


def _shares(hotwords: frozenset[str], weight: float) -> dict[str, float]:
    """By beginning of a hotword, the share of its weight: of the letters of the shortest one that begins so."""
    shares: dict[str, float] = {}
    for word in hotwords:
        for end in range(1, len(word) + 1):
            shares[word[:end]] = max(shares.get(word[:end], 0.0), weight * end / len(word))
    return shares


# --- Decoding --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordSearch:
    """A beam search with word scores.

    Attributes:
        name: How result rows name it, such as `beam-50:lm-1a2b3c4d-0.5-1.5:hotwords-5e6f7a8b-10`: the size of the
            beam; the n-gram by the first digits of its SHA-256, its weight and the bonus of a word; lists of words by
            their digests.
    """

    beam: int
    scorer: WordScorer
    name: str

    def nbest(self, log_probs_TV: Tensor) -> list[tuple[str, float]]:
        """Search for the texts of one utterance.

        Args:
            log_probs_TV: (T, V), natural logarithms, valid frames only.

        Returns:
            Texts, best first, with log P(text | audio) + what their words add. Token sequences of one text are summed.
        """
        found = search_prefixes(log_probs_TV, self.beam, self.scorer)
        texts: dict[str, tuple[float, float]] = {}
        for prefix, score in found:
            added = self.scorer.finish(prefix.context)
            if added is not None:
                text = self._text(prefix)
                texts[text] = (log_add(score, texts.get(text, (-float("inf"), 0.0))[0]), added)
        if not texts:  # every prefix ends within a word, as where audio is cut off
            best, score = found[0]
            return [(" ".join(self._text(best).split()[:-1]), score + best.context.ended)]
        return sorted(((text, ctc + added) for text, (ctc, added) in texts.items()), key=lambda entry: -entry[1])

    def _text(self, prefix: Prefix[Words]) -> str:
        return self.scorer.tokenizer.decode(prefix.tokens())


def word_search(options: BeamOptions, tokenizer: Tokenizer) -> WordSearch:
    """Read what the options name and build the search.

    Raises:
        UserError: A file can't be read, or the model's tokens can't spell a word.
    """
    alphabet = frozenset(letter for _, piece in _pieces(tokenizer).values() for letter in piece)
    parts = [f"beam-{options.beam}"]
    lm, hotwords, words = None, frozenset[str](), None
    weight = HOTWORD_WEIGHT if options.hotword_weight is None else options.hotword_weight
    if options.lm is not None:
        lm = _language_model(read_arpa(options.lm), options, alphabet)
        parts.append(f"lm-{lm.ngram.digest}-{lm.weight:g}-{lm.word_bonus:g}")
    if options.hotwords is not None:
        hotwords = spell(read_words(options.hotwords, "--hotwords"), alphabet, "--hotwords")
        parts.append(f"hotwords-{digest(hotwords)}-{weight:g}")
    if options.words is not None:
        words = spell(read_words(options.words, "--words"), alphabet, "--words")
        parts.append(f"words-{digest(words)}")
    return WordSearch(options.beam, WordScorer(tokenizer, lm, hotwords, weight, words), ":".join(parts))


def _language_model(ngram: NgramModel, options: BeamOptions, alphabet: frozenset[str]) -> LanguageModel:
    """The n-gram in the model's case: the one in which the model can spell most of its words."""
    changes = (str, str.upper, str.lower)
    cased = {change: [word for word in ngram.words if alphabet.issuperset(change(word))] for change in changes}
    change = max(cased, key=lambda each: len(cased[each]))
    if not cased[change]:
        some = ", ".join(sorted(ngram.words)[:3]) or "none at all"
        raise UserError("--lm", f"the model can spell no word of {options.lm} ({some}); train it on the model's texts")
    return LanguageModel(
        ngram,
        LM_WEIGHT if options.lm_weight is None else options.lm_weight,
        WORD_BONUS if options.word_bonus is None else options.word_bonus,
        {change(word): word for word in sorted(cased[change]) if change(word) != word},
    )
