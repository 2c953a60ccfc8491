"""Tokenizers of characters or sub-words: text to token ids and back."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from foldray.errors import UserError, one_line

if TYPE_CHECKING:
    import tokenizers

PAD, UNKNOWN, WORD_BOUNDARY = "<pad>", "<unk>", "|"
BAR = "||"
"""The token of the character `|`, which is the word boundary by itself."""


END = "<sos/eos>"
"""Starts and ends a sentence in models with a decoder, where it is an additional last token."""


WORD_START = "\u2581"
"""Prefix of a word's first sub-word, as in SentencePiece."""

_CHARACTERS = {WORD_BOUNDARY: " ", BAR: "|"}
"""The characters of tokens that are not their own."""


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens of a stock decoder that are no text (see `foldray.models.stock_tokenizer`).

    Attributes:
        prompts: Ids that the decoder is given before the text, by language; "" is the default.
        end: Id of the end of the text.
        most: Most positions of the decoder: prompt, text and end.
        settings: The checkpoint's `tokenizer_config.json`.
    """

    prompts: dict[str, list[int]]
    end: int
    most: int
    settings: str

    def prompt(self, language: str) -> list[int]:
        """The prompt for a language code such as "de" or "de-AT"; the default one for a language without any."""
        return self.prompts.get(_short(language)) or self.prompts[""]

    def lacks(self, language: str) -> bool:
        """Whether a multilingual model has no prompt for a language."""
        return len(self.prompts) > 1 and _short(language) not in self.prompts


def _short(language: str) -> str:
    return language.lower().partition("-")[0].partition("_")[0]


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back: characters, sub-words, or those of a stock checkpoint.

    Attributes:
        vocabulary: Tokens by id. The CTC blank (the padding token) comes first, the unknown token second.
        subwords: JSON of the trained tokenizer of the `tokenizers` library; None for characters.
        special: The special tokens of a stock decoder; None for tokens that foldray made.
    """

    vocabulary: list[str]
    subwords: str | None = None
    special: SpecialTokens | None = None

    def __len__(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits over vocabulary and sub-words; a model works only with the tokenizer of its training."""
        content = [self.vocabulary, self.subwords, *([asdict(self.special)] if self.special else [])]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    @cached_property
    def _characters(self) -> dict[str, int]:
        """Ids by character of a text."""
        return {_CHARACTERS.get(token, token): i for i, token in enumerate(self.vocabulary)}

    @cached_property
    def _subwords(self) -> "tokenizers.Tokenizer":
        import tokenizers

        assert self.subwords is not None
        with without_panic():
            return tokenizers.Tokenizer.from_str(self.subwords)

    def _joined(self, ids: list[int]) -> str:
        with without_panic():
            text: str = self._subwords.decode(ids)
            return text

    @cached_property
    def _is_byte_level(self) -> bool:
        """Whether a word's first token begins with a space (GPT-2's bytes), which the first word needs too."""
        assert self.subwords is not None
        return (json.loads(self.subwords).get("decoder") or {}).get("type") == "ByteLevel"

    @cached_property
    def _not_text(self) -> frozenset[int]:
        """Ids of the tokens that were added to a stock tokenizer: languages, tasks, times, end."""
        assert self.subwords is not None
        return frozenset(token["id"] for token in json.loads(self.subwords).get("added_tokens", []))

    def special_in(self, text: str) -> str | None:
        """The first string of a text that a stock tokenizer takes for a special token, or None."""
        return next((self.vocabulary[i] for i in self.encode(text) if i in self._not_text), None)

    def encode(self, text: str) -> list[int]:
        """Convert normalised text to token ids; a character that no token covers becomes `<unk>`.

        With a unigram model, several such characters in a row become one `<unk>`, as in SentencePiece.
        """
        if self.subwords is not None:
            spaced = f" {text}" if self.special and self._is_byte_level else text
            with without_panic():
                ids: list[int] = self._subwords.encode(spaced, add_special_tokens=not self.special).ids
                return ids
        return [self._characters.get(c, 1) for c in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Convert token ids to text; blanks, unknowns and a decoder's end token are dropped."""
        if self.special:
            return " ".join(self._joined([i for i in ids if i not in self._not_text]).split())
        known = [i for i in ids if 1 < i < len(self)]
        if self.subwords is not None:
            return self._joined(known)
        tokens = (self.vocabulary[i] for i in known)
        return " ".join("".join(_CHARACTERS.get(token, token) for token in tokens).split())

    def spelled(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text, with the spaces between words; "" for blanks and unknowns.

        The bytes of one character may be several tokens: the last of them has the character. Joined and split at
        spaces, the words are those of `decode`.
        """
        if self.subwords is None:
            tokens = (self.vocabulary[i] if 1 < i < len(self) else "" for i in ids)
            return [_CHARACTERS.get(token, token) for token in tokens]
        if not self.special:
            return [self.vocabulary[i].replace(WORD_START, " ") if 1 < i < len(self) else "" for i in ids]
        kept: list[int] = []
        spelled, shown = [], ""
        for i in ids:
            kept += [] if i in self._not_text else [i]
            text = self._joined(kept)
            whole = not text.endswith("\ufffd")  # a character whose other bytes follow
            spelled.append(text[len(shown) :] if whole else "")
            shown = text if whole else shown
        return spelled


@contextmanager
def without_panic() -> Iterator[None]:
    """Raise UserError where the `tokenizers` library panics on a file, which is a BaseException to Python."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        fix = "take the tokenizer of another copy of the model"
        raise UserError("tokenizer", f"its own rules fail on a text ({one_line(error)}); {fix}") from None


def check_subwords(tokenizer: Tokenizer) -> None:
    """Encode and decode the shortest texts; raises what the `tokenizers` library raises on a damaged file."""
    for ids in ([], tokenizer.encode("a")):
        tokenizer.decode(ids)


def without_code(settings: str) -> str:
    """The settings of a tokenizer without the code that they name, which foldray never runs: others may."""
    fields = json.loads(settings)
    return json.dumps({name: value for name, value in fields.items() if name != "auto_map"})


def reserved_in(text: str) -> str | None:
    """The first string in a text that sub-words give another meaning, or None. Characters reserve none."""
    return next((token for token in (PAD, UNKNOWN, END, WORD_START) if token in text), None)


def tokenizer_from_json(subwords: str) -> Tokenizer:
    """Build a sub-word tokenizer from the JSON of the `tokenizers` library."""
    vocabulary = json.loads(subwords)["model"]["vocab"]
    if isinstance(vocabulary, dict):  # byte pairs; a unigram model has a list of tokens and scores
        return Tokenizer(sorted(vocabulary, key=lambda token: vocabulary[token]), subwords)
    return Tokenizer([token for token, _ in vocabulary], subwords)
