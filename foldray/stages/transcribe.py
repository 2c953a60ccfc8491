"""The stage `transcribe`: text for recordings of any length."""

from collections.abc import Iterator, Sequence
from typing import Literal

from foldray.errors import UserError
from foldray.evaluation.beam_options import BeamOptions
from foldray.evaluation.decode import parse_decoding
from foldray.evaluation.provenance import find_model
from foldray.models.device import CPU
from foldray.transcription.files import Recording, transcribe
from foldray.transcription.inputs import find_recordings
from foldray.transcription.recogniser import Recogniser
from foldray.transcription.transcript import Transcript

LEAST_SECONDS, MOST_SECONDS = 2.0, 120.0


def transcribe_stage(
    model: str,
    store: str,
    given: Sequence[str],
    depth: int | Literal["auto"] | None = None,
    decoding: str | None = None,
    language: str = "",
    beam: BeamOptions | None = None,
    *,
    words: bool | None = None,
    chunk_seconds: float | None = None,
    device: str = CPU,
) -> tuple[list[Recording], Iterator[tuple[Recording, Transcript | UserError]]]:
    """Transcribe recordings at one depth, the deepest by default.

    Args:
        model: A run id in the store, a run or checkpoint URI, or a model folder.
        store: The store that run ids refer to.
        given: Files, folders, patterns, prefixes of buckets and manifests.
        depth: The depth to run; `auto` chooses one for each part of a recording.
        decoding: How to decode; by default CTC where the model has it.
        language: Language code for the prompt of a multilingual model.
        beam: Options of the beam search: an n-gram, hotwords, a closed list of words.
        words: Time the words; None: where the decoding gives times.
        chunk_seconds: Longest part that the model runs on at once; by default as long as its training utterances.
        device: Device of torch.

    Returns:
        The recordings, and an iterator over them in order, each with its transcript or its error.

    Raises:
        UserError: The model, depth or an argument is wrong; nothing is transcribed then.
    """
    check_chunk(chunk_seconds)
    recordings = list(find_recordings(given, language))
    recogniser = Recogniser(find_model(model, store).uri, parse_decoding(decoding, beam), beam, device)
    recogniser.check_language(language)
    if words and not recogniser.has_times:
        raise UserError("--format", f"{recogniser.decoding} decoding gives no times of words; use text, or ctc")
    recogniser.choice(depth)
    timed = recogniser.has_times if words is None else words
    return recordings, transcribe(recogniser, recordings, depth, chunk_seconds=chunk_seconds, words=timed)


def check_chunk(seconds: float | None) -> None:
    """Raise UserError for a length of chunks that is not sensible."""
    if seconds is not None and not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise UserError("--chunk", f"use {LEAST_SECONDS:g} to {MOST_SECONDS:g} seconds, not {seconds:g}")
