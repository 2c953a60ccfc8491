"""A recording of any length as a stream of 16 kHz samples. Memory does not grow with its length, but for its bytes."""

import importlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.data.audio import SILENCE_PEAK, near_rate, resample
from foldray.data.containers.formats import other_format
from foldray.data.samples import BadAudioError, sample_blocks
from foldray.errors import UserError, one_line
from foldray.runtime.extras import is_installed

Samples = npt.NDArray[np.float32]

MAX_BYTES = 2**31
"""Largest file that is read: 3 hours of CD quality, or 18 of 16 kHz WAV. A film is read in parts and has no limit."""
MAX_HOURS = 48
"""Longest recording: a file of some megabytes may state a rate of 1 Hz, or hold years of silence."""
PIECE_SECONDS, MARGIN_SECONDS = 30, 1
"""Samples are resampled in pieces; the filter reaches 10 ms over their ends."""
FILM_SLACK_SECONDS = 1.0
"""How much shorter than stated the sound of a film may be: encoders pad, and cuts fall between their frames."""
FILM_FIX = "write it as FLAC with ffmpeg, or install PyAV: pip install 'foldray[video]'"


def read_recording(uri: str) -> Iterator[Samples]:
    """Yield the mono 16 kHz samples of an audio file in pieces of at most 30 s, (T,).

    Containers that libsndfile does not read (MP4, WebM, …) go through PyAV, if it is installed.

    Raises:
        UserError: The file is missing, unreadable or damaged, also after some pieces; names the file.
    """
    try:
        with storage.open_file(uri) as file:
            yield from _pieces(file)
    except FileNotFoundError:
        raise UserError(uri, "does not exist") from None
    except OSError as error:
        raise UserError(uri, f"can't be read ({error.strerror or error})") from None
    except BadAudioError as bad:
        raise UserError(uri, f"can't be used ({bad.reason}: {bad.detail})") from None


def decode_recording(data: bytes) -> Iterator[Samples]:
    """Yield the mono 16 kHz samples of an audio file in memory, as `read_recording`. Raises BadAudioError."""
    yield from _pieces(io.BytesIO(data))


def _pieces(file: BinaryIO) -> Iterator[Samples]:
    other = other_format(file.read(1024))
    file.seek(0)
    if other and other[0] == "unsupported_format":
        if not is_installed("av"):
            raise BadAudioError(other[0], f"{other[1].partition(';')[0]}; {FILM_FIX}")
        yield from _heard(_film_pieces(file))
        return
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadAudioError("too_long", f"over {MAX_BYTES >> 30} GiB; split it, or write it as FLAC")
    yield from _heard(_resampled((_mono(block_TC), rate) for block_TC, rate in sample_blocks(data)))


def _mono(samples_TC: Samples) -> Samples:
    """The mean of all channels, or the first where the mean cancels them, as of a balanced line in stereo."""
    if not np.isfinite(samples_TC).all():
        raise BadAudioError("not_finite", "NaN or infinite samples")
    mono_T: Samples = samples_TC.mean(axis=1, dtype=np.float32)
    channels = samples_TC.shape[1]
    if channels > 1 and float(mono_T.var()) * channels**2 < 0.01 * float(samples_TC.var(axis=0).sum()):
        mono_T = np.ascontiguousarray(samples_TC[:, 0])
    return np.clip(mono_T, -1, 1)


def _heard(pieces: Iterable[Samples]) -> Iterator[Samples]:
    """The pieces. Raises BadAudioError at the end if all of them are silent, and where there are too many."""
    peak, samples = 0.0, 0
    for piece_T in pieces:
        samples += len(piece_T)
        if samples > MAX_HOURS * 3600 * SAMPLE_RATE:
            raise BadAudioError("too_long", f"over {MAX_HOURS} hours; split it")
        peak = max(peak, float(np.abs(piece_T).max(initial=0.0)))
        yield piece_T
    if peak < SILENCE_PEAK:
        raise BadAudioError("silent", f"peak below {SILENCE_PEAK:g} of full scale")


def _resampled(blocks: Iterable[tuple[Samples, int]]) -> Iterator[Samples]:
    """Pieces at 16 kHz; each is resampled with a margin of its neighbours, so that they join without a seam."""
    before, held, rate = np.zeros(0, np.float32), np.zeros(0, np.float32), SAMPLE_RATE
    for block_T, block_rate in blocks:
        rate = near_rate(block_rate)
        held = np.concatenate([held, block_T])
        piece, margin = PIECE_SECONDS * rate, MARGIN_SECONDS * rate
        while len(held) >= piece + margin:
            yield _resample_piece(before, held[:piece], held[piece : piece + margin], rate)
            before, held = held[piece - margin : piece], held[piece:]
    if len(held):
        yield _resample_piece(before, held, held[:0], rate)


def _resample_piece(before_T: Samples, piece_T: Samples, after_T: Samples, rate: int) -> Samples:
    if rate == SAMPLE_RATE:
        return piece_T
    samples_T = resample(np.concatenate([before_T, piece_T, after_T]), rate)
    start = len(before_T) * SAMPLE_RATE // rate
    return samples_T[start : start + -(-len(piece_T) * SAMPLE_RATE // rate)]


def _film_pieces(file: BinaryIO) -> Iterator[Samples]:
    """The first audio track of a container that PyAV opens."""
    av: Any = importlib.import_module("av")
    try:
        with av.open(file, "r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise BadAudioError("unreadable", "has no audio track")
            stated, heard = _stated_seconds(container), 0
            for piece_T in _resampled_frames(av, container.decode(audio=0)):
                heard += len(piece_T)
                yield piece_T
    except (av.error.FFmpegError, ValueError) as error:
        raise BadAudioError("unreadable", one_line(error)) from None
    if heard / SAMPLE_RATE < stated - FILM_SLACK_SECONDS:
        raise BadAudioError("truncated", f"{heard / SAMPLE_RATE:.1f} of {stated:.1f} s of sound; copy it again")


def _stated_seconds(container: Any) -> float:
    """Length of the audio track as the film's header states it; 0 where that is a guess or missing."""
    track = container.streams.audio[0]
    if not container.format.name.startswith(("mov", "matroska")):
        return 0.0
    if track.duration is not None:
        return float(track.duration * track.time_base)
    if clock := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", track.metadata.get("DURATION", "")):
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    return 0.0


def _resampled_frames(av: Any, frames: Iterable[Any]) -> Iterator[Samples]:
    """Mono samples at 16 kHz in pieces. A broadcast may change from stereo to 5.1: each has a resampler of its own."""
    held: list[Samples] = []
    layout: object = None
    resampler: Any = None
    for frame in itertools.chain(frames, [None]):
        now = frame and (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or (frame and now != layout):
            held += _mono_frames(resampler, None) if resampler else []
            resampler, layout = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE), now
        held += _mono_frames(resampler, frame)
        if sum(map(len, held)) >= PIECE_SECONDS * SAMPLE_RATE:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _mono_frames(resampler: Any, frame: Any) -> list[Samples]:
    return [out.to_ndarray().reshape(-1) for out in resampler.resample(frame)]
