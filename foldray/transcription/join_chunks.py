"""The transcript of a recording, from what the model found in its chunks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from foldray.config.corpus import SAMPLE_RATE
from foldray.evaluation.decode import UNENDED
from foldray.transcription.chunks import Chunk
from foldray.transcription.recogniser import Piece, Recogniser
from foldray.transcription.seams import join_at_seam
from foldray.transcription.transcript import Transcript, Word, join_words
from foldray.transcription.words import FramePath, ctc_tokens, geometric_mean, join_paths, to_words

DECODER_CONTEXT = 3.0
"""Seconds that a chunk sees of its neighbours where a cut is not in a pause, for a decoder."""

Found = FramePath | Piece | None
"""What the model found in a chunk; None in silence."""

Results = Sequence[tuple[Chunk, Found]]


def join_chunks(recogniser: Recogniser, results: Results, transcript: Transcript, words: bool) -> Transcript:
    """Fill in the text of a recording.

    Args:
        recogniser: The model that found `results`.
        results: Every chunk in order, and what was found in it.
        transcript: The transcript so far: seconds and depth.
        words: Time the words.
    """
    join = _from_frames if recogniser.is_ctc else _from_pieces
    return join(recogniser, results, transcript, words)


def _from_frames(recogniser: Recogniser, results: Results, transcript: Transcript, words: bool) -> Transcript:
    """The transcript of CTC's frames: of each chunk those of its own part."""
    hop = recogniser.samples_per_frame
    paths = []
    for number, (chunk, path) in enumerate(results):
        last = number == len(results) - 1
        own = -(-(chunk.end - chunk.begin) // hop)
        if isinstance(path, FramePath):
            first = (chunk.begin - chunk.start) // hop
            paths.append(path.part(first, None if last else first + own))
        else:
            paths.append(FramePath(np.zeros(own, np.int64), np.ones(own, np.float32)))
    tokens = ctc_tokens(join_paths(paths), hop / SAMPLE_RATE)
    return replace(
        transcript,
        text=recogniser.tokenizer.decode([token.id for token in tokens]),
        confidence=geometric_mean([token.probability for token in tokens]),
        words=tuple(to_words(tokens, recogniser.tokenizer)) if words else (),
    )


def _from_pieces(recogniser: Recogniser, results: Results, transcript: Transcript, words: bool) -> Transcript:
    """The transcript of a decoder's texts, joined at their seams."""
    joined: list[Word] = []
    texts: list[str] = []
    probabilities: list[float] = []
    unended = False
    seams = any(any(chunk.overlaps) for chunk, _ in results)
    for chunk, piece in results:
        if not isinstance(piece, Piece):
            continue
        unended |= not piece.ended
        texts.append(piece.text)
        own = _words_at(recogniser, piece, chunk.start / SAMPLE_RATE)
        probabilities += [token.probability for token in piece.tokens or ()]
        if chunk.overlaps[0]:
            joined = join_at_seam(joined, own, chunk.begin / SAMPLE_RATE, DECODER_CONTEXT)
        else:
            joined += own
    return replace(
        transcript,
        text=join_words([word.text for word in joined]) if seams else join_words(list(filter(None, texts))),
        confidence=geometric_mean(probabilities),
        words=tuple(joined) if words else (),
        notes=(UNENDED,) if unended else (),
    )


def _words_at(recogniser: Recogniser, piece: Piece, offset: float) -> list[Word]:
    if piece.tokens is None:  # not timed, as no neighbour heard any of it: the order is all that counts
        return [Word(word, offset, offset, 1.0) for word in piece.text.split()]
    return [
        replace(word, start=word.start + offset, end=word.end + offset)
        for word in to_words(piece.tokens, recogniser.tokenizer)
    ]
