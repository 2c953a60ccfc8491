"""Transcribing recordings of any length: a bounded stream of chunks, in batches, and their texts in order."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from foldray.config.corpus import SAMPLE_RATE
from foldray.data.audio import SILENCE_PEAK
from foldray.errors import UserError
from foldray.transcription.chunks import LEVEL_SAMPLES, Chunk, cut_chunks
from foldray.transcription.join_chunks import DECODER_CONTEXT, Found, join_chunks
from foldray.transcription.recogniser import DepthChoice, Piece, Recogniser
from foldray.transcription.transcript import Transcript
from foldray.transcription.words import FramePath

Samples = npt.NDArray[np.float32]

CTC_CONTEXT = 1.6
"""Seconds that a chunk sees of its neighbours where a cut is not in a pause, for CTC."""
READ_AHEAD = 32
"""Chunks that are read ahead and sorted by length, so that batches hold little padding: ten minutes of audio."""


NO_SAMPLES = np.zeros(0, np.float32)
"""What a chunk with results holds: a slice of its samples would keep the whole buffer."""


@dataclass(frozen=True)
class Recording:
    """A recording to transcribe.

    Attributes:
        name: What it is called in results.
        read: Opens it: consecutive mono samples at 16 kHz. May raise UserError at any piece.
        language: Language code for the prompt of a multilingual model.
    """

    name: str
    read: Callable[[], Iterable[Samples]]
    language: str = ""


@dataclass
class OpenRecording:
    """A recording whose chunks are on their way."""

    recording: Recording
    results: dict[int, tuple[Chunk, Sequence[Found]]] = field(default_factory=dict)
    depth: int = 0
    samples: int = 0
    read: int = 0
    whole: bool = False
    error: UserError | None = None

    @property
    def done(self) -> bool:
        """Whether every chunk has its results."""
        return self.whole and len(self.results) == self.read

    def add(self, number: int, chunk: Chunk, found: Sequence[Found], depth: int = 0) -> None:
        """Keep the results of a chunk, and the depth if there is one; its samples are let go."""
        self.results[number] = (replace(chunk, samples=NO_SAMPLES), found)
        self.depth = max(self.depth, depth)


def transcribe(
    recogniser: Recogniser,
    recordings: Iterable[Recording],
    depth: int | Literal["auto"] | None = None,
    *,
    chunk_seconds: float | None = None,
    words: bool = False,
) -> Iterator[tuple[Recording, Transcript | UserError]]:
    """Transcribe recordings of any length, one after the other, in bounded memory.

    Args:
        recogniser: The model.
        recordings: What to transcribe; read as it is needed.
        depth: The depth to run, the deepest by default; `auto` chooses one for each chunk.
        chunk_seconds: Longest part that the model runs on at once; by default as long as its training utterances.
        words: Time the words.

    Yields:
        Every recording in order, with its transcript, or the error that makes it unusable.

    Raises:
        UserError: The depth has no path, or `auto` no calibration.

    Example:
        >>> recordings = [Recording("a.wav", lambda: read_recording("a.wav"))]
        >>> for recording, found in transcribe(recogniser, recordings, depth=6):
        ...     print(recording.name, found.text)
        a.wav hello world
    """
    choice = recogniser.choice(depth)
    recognise = functools.partial(_recognise, recogniser, choice, words)
    for recording, found in _transcribe(recogniser, recordings, choice.depths[:1], recognise, chunk_seconds, words):
        yield recording, found if isinstance(found, UserError) else found[0]


def transcribe_at(
    recogniser: Recogniser,
    recordings: Iterable[Recording],
    depths: Sequence[int],
    *,
    chunk_seconds: float | None = None,
    words: bool = False,
) -> Iterator[tuple[Recording, list[Transcript] | UserError]]:
    """Transcribe recordings at several depths, as `transcribe`; CTC runs the blocks that paths share only once.

    Yields:
        Every recording in order, with a transcript for each depth, or its error.
    """
    for depth in depths:
        recogniser.choice(depth)
    recognise = functools.partial(_recognise_at, recogniser, depths, words)
    return _transcribe(recogniser, recordings, depths, recognise, chunk_seconds, words)


_Batch = list[tuple[OpenRecording, int, Chunk]]


def _transcribe(
    recogniser: Recogniser,
    recordings: Iterable[Recording],
    depths: Sequence[int],
    recognise: Callable[[_Batch], None],
    chunk_seconds: float | None,
    words: bool,
) -> Iterator[tuple[Recording, list[Transcript] | UserError]]:
    """The recordings with a transcript for each depth; `recognise` fills in the results of a batch."""
    waiting: list[OpenRecording] = []
    longest = min(chunk_seconds or recogniser.chunk_seconds, recogniser.longest)
    chunks = read_chunks(recogniser, recordings, waiting, longest)
    while batch := list(islice(chunks, READ_AHEAD)):
        for group in _batches([each for each in batch if each[2] is not None], recogniser.batch_seconds):
            recognise(group)
        while waiting and waiting[0].done:
            finished = waiting.pop(0)
            yield finished.recording, finish(recogniser, finished, depths, words)
    for finished in waiting:
        yield finished.recording, finish(recogniser, finished, depths, words)


NumberedChunk = tuple[OpenRecording, int, Chunk | None]


def read_chunks(
    recogniser: Recogniser, recordings: Iterable[Recording], waiting: list[OpenRecording], seconds: float
) -> Iterator[NumberedChunk]:
    """The chunks of all recordings, and a None behind each recording."""
    ctc = recogniser.is_ctc
    context = min(CTC_CONTEXT if ctc else DECODER_CONTEXT, seconds / 4) if recogniser.has_times else 0.0
    step = recogniser.samples_per_frame if ctc else LEVEL_SAMPLES
    for recording in recordings:
        opened = OpenRecording(recording)
        waiting.append(opened)
        try:
            for chunk in cut_chunks(recording.read(), seconds, context, step):
                opened.samples = chunk.end
                yield _numbered(recogniser, opened, chunk)
        except UserError as error:
            opened.error = error
        opened.whole = True
        yield opened, 0, None


def _numbered(recogniser: Recogniser, opened: OpenRecording, chunk: Chunk) -> NumberedChunk:
    """A chunk for the model, or its empty result if it is silent or too short for a frame."""
    number = opened.read
    opened.read += 1
    silent = float(np.abs(chunk.samples).max(initial=0.0)) < SILENCE_PEAK
    if opened.error or silent or not recogniser.takes(len(chunk.samples)):
        opened.add(number, chunk, ())
        return opened, number, None
    return opened, number, chunk


def _batches(chunks: Sequence[NumberedChunk], most: float) -> Iterator[list[tuple[OpenRecording, int, Chunk]]]:
    """Batches of chunks of like lengths and at most so many seconds of padded audio."""
    given = [(opened, number, chunk) for opened, number, chunk in chunks if chunk is not None]
    batch: list[tuple[OpenRecording, int, Chunk]] = []
    for each in sorted(given, key=lambda each: len(each[2].samples)):
        if batch and (len(batch) + 1) * len(each[2].samples) > most * SAMPLE_RATE:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _recognise(recogniser: Recogniser, choice: DepthChoice, words: bool, batch: _Batch) -> None:
    """Recognise a batch at the first depth; what is not sure enough again at the next."""
    times = words or len(choice.depths) > 1
    for depth in choice.depths:
        unsure: _Batch = []
        for each, result in zip(batch, _results(recogniser, batch, depth, times), strict=True):
            opened, number, chunk = each
            opened.add(number, chunk, [result], depth)
            if recogniser.confidence(result) < choice.threshold:
                unsure.append(each)
        batch = unsure
        if not batch:
            return


def _recognise_at(recogniser: Recogniser, depths: Sequence[int], words: bool, batch: _Batch) -> None:
    """Recognise a batch at every depth."""
    if recogniser.is_ctc:
        found: Sequence[Sequence[Found]] = recogniser.frame_paths_at([chunk.samples for _, _, chunk in batch], depths)
    else:
        found = [_results(recogniser, batch, depth, words) for depth in depths]
    for (opened, number, chunk), *results in zip(batch, *found, strict=True):
        opened.add(number, chunk, results)


def _results(recogniser: Recogniser, batch: _Batch, depth: int, times: bool) -> Sequence[FramePath | Piece]:
    clips = [chunk.samples for _, _, chunk in batch]
    if recogniser.is_ctc:
        return recogniser.frame_paths(clips, depth)
    seams = any(any(chunk.overlaps) for _, _, chunk in batch)
    languages = [opened.recording.language for opened, _, _ in batch]
    return recogniser.decoded(clips, depth, languages, times=times or seams)


def finish(
    recogniser: Recogniser, opened: OpenRecording, depths: Sequence[int], words: bool
) -> list[Transcript] | UserError:
    """The transcripts of a recording whose chunks have their results, one for each depth, or its error."""
    if opened.error:
        return opened.error
    if not any(found for _, found in opened.results.values()) and opened.read == 1:
        chunk = opened.results[0][0]
        if not recogniser.takes(chunk.end):
            seconds = chunk.end / SAMPLE_RATE
            return UserError(opened.recording.name, f"can't be used (too_short: {seconds:.3f} s give no frame)")
    results = [opened.results[number] for number in sorted(opened.results)]
    transcripts = []
    for i, depth in enumerate(depths):
        own = [(chunk, found[i] if found else None) for chunk, found in results]
        empty = Transcript("", opened.samples / SAMPLE_RATE, opened.depth or depth)
        transcripts.append(join_chunks(recogniser, own, empty, words))
    return transcripts
