"""Joining what was found in chunks: no word is glued to the next at a pause, and no time drifts."""

from types import SimpleNamespace

import numpy as np
import pytest

from foldray.models.tokenizer import Tokenizer
from foldray.models.train_tokenizer import bpe_tokenizer, character_tokenizer
from foldray.transcription.chunks import Chunk
from foldray.transcription.files import NO_SAMPLES, OpenRecording, Recording
from foldray.transcription.join_chunks import join_chunks
from foldray.transcription.recogniser import Piece
from foldray.transcription.transcript import Transcript
from foldray.transcription.words import FramePath

HOP = 320
TEXTS = ["AB", "BA AB"]


def heard(tokenizer: Tokenizer, text: str, frames: int) -> FramePath:
    """A path that writes a text, each token in one frame and a blank behind it."""
    ids = [each for token in tokenizer.encode(text) for each in (token, 0)]
    return FramePath(np.array(ids + [0] * (frames - len(ids))), np.full(frames, 0.5, np.float32))


def chunk(begin: int, frames: int, *, after_pause: bool = True) -> Chunk:
    return Chunk(NO_SAMPLES, begin * HOP, begin * HOP, (begin + frames) * HOP, (not after_pause, False))


@pytest.mark.parametrize("tokenizer", [character_tokenizer(TEXTS), bpe_tokenizer(TEXTS * 3, 8)], ids=["char", "bpe"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_pause_between_chunks_ends_a_word_and_shifts_no_time(tokenizer: Tokenizer, missing: int) -> None:
    """A convolutional front end makes one frame less than a chunk's samples are worth."""
    recogniser = SimpleNamespace(is_ctc=True, samples_per_frame=HOP, tokenizer=tokenizer)
    results = [(chunk(20 * i, 20), heard(tokenizer, "AB", 20 - missing)) for i in range(50)]
    found = join_chunks(recogniser, results, Transcript("", 20.0, 2), words=True)  # type: ignore[arg-type]
    assert found.text == " ".join(["AB"] * 50)
    assert [word.text for word in found.words] == ["AB"] * 50
    assert [word.start for word in found.words] == pytest.approx([20 * i * 0.02 for i in range(50)])
    assert found.confidence == pytest.approx(0.5)


def test_a_word_that_goes_on_over_a_cut_stays_one() -> None:
    tokenizer = character_tokenizer(TEXTS)
    recogniser = SimpleNamespace(is_ctc=True, samples_per_frame=HOP, tokenizer=tokenizer)
    results = [(chunk(0, 4), heard(tokenizer, "A", 4)), (chunk(4, 4, after_pause=False), heard(tokenizer, "B", 4))]
    assert join_chunks(recogniser, results, Transcript("", 0.2, 2), words=True).text == "AB"  # type: ignore[arg-type]


def test_there_is_no_confidence_without_probabilities() -> None:
    recogniser = SimpleNamespace(is_ctc=False, tokenizer=character_tokenizer(TEXTS))
    for results, confidence in ([(chunk(0, 4), Piece("AB"))], None), ([(chunk(0, 4), None)], 1.0):
        found = join_chunks(recogniser, results, Transcript("", 0.1, 2), words=False)  # type: ignore[arg-type]
        assert found.confidence == confidence


def test_a_chunk_with_results_holds_no_samples() -> None:
    opened = OpenRecording(Recording("a", list))
    buffer = np.zeros(1_000, np.float32)
    opened.add(0, Chunk(buffer[10:20], 0, 0, 10), ())
    kept = opened.results[0][0].samples
    assert len(kept) == 0
    assert kept.base is None
