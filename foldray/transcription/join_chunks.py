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
from foldray.transcription.words import BLANK, FramePath, TimedToken, ctc_tokens, geometric_mean, join_paths, to_words

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
    """The transcript of CTC's frames: of each chunk those of its own part.

    A pause ends a word. A model of characters, which has seen no space at the end of an utterance, need not write one
    there, so what lies between two cuts in pauses is a text of its own.
    """
    hop, tokenizer = recogniser.samples_per_frame, recogniser.tokenizer
    runs: list[list[TimedToken]] = []
    run: list[FramePath] = []
    begin = 0
    for number, (chunk, path) in enumerate(results):
        if run and not chunk.overlaps[0] and not tokenizer.subwords:
            runs.append(_tokens(run, begin, hop))
            run, begin = [], chunk.begin
        run.append(_own_frames(chunk, path, hop, last=number == len(results) - 1))
    runs.append(_tokens(run, begin, hop))
    texts = [tokenizer.decode([token.id for token in tokens]) for tokens in runs]
    return replace(
        transcript,
        text=join_words(list(filter(None, texts))),
        confidence=geometric_mean([token.probability for tokens in runs for token in tokens]),
        words=tuple(word for tokens in runs for word in to_words(tokens, tokenizer)) if words else (),
    )


def _tokens(run: Sequence[FramePath], begin: int, hop: int) -> list[TimedToken]:
    """The tokens of consecutive chunks, timed from the start of the recording."""
    offset = begin / SAMPLE_RATE
    tokens = ctc_tokens(join_paths(run), hop / SAMPLE_RATE)
    return [replace(token, start=token.start + offset, end=token.end + offset) for token in tokens]


def _own_frames(chunk: Chunk, path: Found, hop: int, *, last: bool) -> FramePath:
    """The frames of a chunk's own part, as many as its samples are worth, so that no later time shifts."""
    own = -(-(chunk.end - chunk.begin) // hop)
    if not isinstance(path, FramePath):
        return _blanks(own)
    first = (chunk.begin - chunk.start) // hop
    part = path.part(first, None if last else first + own)
    # A convolutional front end makes no frame of the last samples before a cut in a pause.
    return part if last else join_paths([part, _blanks(own - len(part.ids_T))])


def _blanks(count: int) -> FramePath:
    return FramePath(np.full(count, BLANK, np.int64), np.ones(count, np.float32))


def _from_pieces(recogniser: Recogniser, results: Results, transcript: Transcript, words: bool) -> Transcript:
    """The transcript of a decoder's texts, joined at their seams."""
    joined: list[Word] = []
    texts: list[str] = []
    probabilities: list[float] = []
    unended = untimed = False
    seams = any(any(chunk.overlaps) for chunk, _ in results)
    for chunk, piece in results:
        if not isinstance(piece, Piece):
            continue
        unended |= not piece.ended
        untimed |= bool(piece.text) and piece.tokens is None
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
        confidence=None if untimed else geometric_mean(probabilities),
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
