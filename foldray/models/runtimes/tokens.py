"""The token files of onnx-asr and sherpa-onnx."""

import base64
import json
from collections.abc import Iterable

from foldray.errors import UserError
from foldray.models.tokenizer import BAR, WORD_BOUNDARY, WORD_START, Tokenizer

BLANK = "<blk>"
"""The blank's name in both runtimes."""
UNKNOWN = "\u2047"
"""Never chosen. Its bytes also keep sherpa-onnx from taking a small alphabet for one of bytes."""
DROPPED = ("SIL", "</s>")
"""Tokens that sherpa-onnx drops wherever they occur, although they may be pieces of words."""
NEEDED = ("<|startoftranscript|>", "<|endoftext|>", "<|transcribe|>", "<|notimestamps|>")
"""Special tokens that onnx-asr looks up."""


def ctc_tokens(tokenizer: Tokenizer) -> str:
    """A line for each token, with its id; the beginning of a word is written as in SentencePiece."""
    names = {WORD_BOUNDARY: WORD_START, BAR: WORD_BOUNDARY} if tokenizer.subwords is None else {}
    texts = [BLANK, UNKNOWN, *(names.get(token, token) for token in tokenizer.vocabulary[2:])]
    return _lines((token, i) for i, token in enumerate(texts))


def sherpa_ctc_tokens(tokenizer: Tokenizer) -> str:
    """`ctc_tokens`, where tokens that sherpa-onnx would drop come first with ids that no model returns."""
    decoys = [token for token in DROPPED if token in tokenizer.vocabulary]
    return _lines((token, len(tokenizer) + i) for i, token in enumerate(decoys)) + ctc_tokens(tokenizer)


def _lines(tokens: Iterable[tuple[str, int]]) -> str:
    return "".join(f"{token} {i}\n" for token, i in tokens)


def whisper_vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of Whisper's text tokens, as byte-level BPE writes them, and of its special tokens.

    Raises:
        UserError: The prompt is not made of the special tokens that the runtimes look up.
    """
    assert tokenizer.special is not None
    added = {token["content"]: token["id"] for token in json.loads(str(tokenizer.subwords)).get("added_tokens", [])}
    start, end, transcribe, quiet = (added.get(token) for token in NEEDED)
    prompt = tokenizer.special.prompts[""]
    usual = [start, quiet] if len(prompt) == 2 else [start, *prompt[1:2], transcribe, quiet]
    if prompt != usual or end != tokenizer.special.end or transcribe is None:
        raise UserError("--format", f"both runtimes need Whisper's tokens {', '.join(NEEDED)}; use unrolled")
    special = set(added.values())
    return {token: i for i, token in enumerate(tokenizer.vocabulary) if i not in special}, added


def sherpa_whisper_tokens(tokenizer: Tokenizer) -> str:
    """A line for each text token: its bytes as base64, and its id. Raises UserError where it stands for no bytes."""
    text, _ = whisper_vocabulary(tokenizer)
    bytes_of = _bytes_of_characters()
    if other := [token for token in text if not bytes_of.keys() >= {*token}]:
        problem = f"sherpa-onnx needs a vocabulary of bytes (GPT-2's), and {other[0][:20]!r} is not of it; use unrolled"
        raise UserError("--format", problem)
    raw = ((bytes(bytes_of[character] for character in token), i) for token, i in text.items())
    return _lines((base64.b64encode(token).decode(), i) for token, i in raw)


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
