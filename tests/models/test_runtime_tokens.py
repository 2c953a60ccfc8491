"""Token files of onnx-asr and sherpa-onnx."""

import base64
import json
from dataclasses import replace

import pytest

from foldray.errors import UserError
from foldray.models.runtimes.tokens import (
    ctc_tokens,
    sherpa_ctc_tokens,
    sherpa_whisper_tokens,
    whisper_vocabulary,
)
from foldray.models.tokenizer import SpecialTokens, Tokenizer
from foldray.models.train_tokenizer import bpe_tokenizer, character_tokenizer
from tests.support.seq2seq import END, QUIET, SPECIAL, START, TRANSCRIBE, byte_level


def whisper_tokenizer(*prompt: str) -> Tokenizer:
    """The tokens of `write_whisper`, with a prompt."""
    made = byte_level()
    ids = {token: made.token_to_id(token) for token in SPECIAL}
    vocabulary = [made.id_to_token(i) for i in range(made.get_vocab_size())]
    special = SpecialTokens({"": [ids[token] for token in prompt]}, ids[END], 64, "{}")
    return Tokenizer(vocabulary, made.to_str(), special)


def test_characters_and_subwords_mark_words_alike() -> None:
    tokenizer = character_tokenizer(["AB |"])
    assert tokenizer.vocabulary == ["<pad>", "<unk>", "|", "A", "B", "||"]
    assert ctc_tokens(tokenizer) == "<blk> 0\n⁇ 1\n▁ 2\nA 3\nB 4\n| 5\n"
    subwords = bpe_tokenizer(["AB AB B"], 7)
    assert ctc_tokens(subwords).splitlines()[2:] == [
        f"{token} {i + 2}" for i, token in enumerate(subwords.vocabulary[2:])
    ]
    assert "▁" in ctc_tokens(subwords)


def test_the_last_id_of_what_sherpa_onnx_drops_is_no_output() -> None:
    tokenizer = bpe_tokenizer(["SIL SILK SIL"] * 3, 10)
    first, *rest = sherpa_ctc_tokens(tokenizer).splitlines()
    assert first == f"SIL {len(tokenizer)}"
    assert "\n".join([*rest, ""]) == ctc_tokens(tokenizer)
    assert f"SIL {tokenizer.vocabulary.index('SIL')}" in rest


def test_whisper_tokens_are_bytes() -> None:
    tokenizer = whisper_tokenizer(START, QUIET)
    text, added = whisper_vocabulary(tokenizer)
    assert {*text.values(), *added.values()} == set(range(len(tokenizer)))
    lines = dict(line.split(" ")[::-1] for line in sherpa_whisper_tokens(tokenizer).splitlines())
    ids = tokenizer.encode("one ü two")
    assert b"".join(base64.b64decode(lines[str(i)]) for i in ids).decode() == " one ü two"
    assert not {str(i) for i in added.values()} & lines.keys()
    assert json.loads(str(tokenizer.subwords))["model"]["vocab"] == text


@pytest.mark.parametrize("prompt", [(START,), (START, TRANSCRIBE, QUIET), (QUIET, START)])
def test_a_prompt_that_no_runtime_gives_is_refused(prompt: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="both runtimes need Whisper's tokens "):
        whisper_vocabulary(whisper_tokenizer(*prompt))


def test_a_token_that_stands_for_no_bytes_is_refused() -> None:
    tokenizer = whisper_tokenizer(START, QUIET)
    other = replace(tokenizer, vocabulary=["▁one", *tokenizer.vocabulary[1:]])
    with pytest.raises(UserError, match=r"--format: sherpa-onnx needs a vocabulary of bytes .* '▁one' is not of it"):
        sherpa_whisper_tokens(other)
