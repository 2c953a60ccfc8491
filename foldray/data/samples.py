"""Reading the samples of audio files through libsndfile, after their containers are checked."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from foldray.config.corpus import SAMPLE_RATE
from foldray.data.containers import read_contents
from foldray.data.containers.formats import CHECKED_FORMATS, FIX, other_format
from foldray.errors import one_line

BLOCK = 2**18
MAX_SECONDS = 6 * 3600
LEAST_RATE = 1_000
"""Lowest rate in Hz: what is below holds no speech, and is the mistake of a header."""


@dataclass(eq=False)
class BadAudioError(Exception):
    """Audio that is not usable: a reason code to count by, and a detail that says how to fix it."""

    reason: str
    detail: str


def read_samples(
    source: bytes | BinaryIO, start: float | None = None, seconds: float | None = None, max_seconds: float = MAX_SECONDS
) -> tuple[npt.NDArray[np.float32], int, int]:
    """Read an audio file, or a segment of it, as it is stored.

    Args:
        source: The file's bytes, or a seekable file, of which a segment reads only its own part where it can.
        start: Seconds into the file where a segment begins; None for the whole file.
        seconds: Length of the segment; None up to the end of the file.
        max_seconds: Longer audio is refused before it is decoded.

    Returns:
        Samples (T, C), their rate in Hz, and the number that the headers state (0 for a segment).

    Raises:
        BadAudioError: The audio is missing, damaged, cut off, too long, or of a format that is not decoded.
    """
    if seconds is not None and start is not None:
        return *_segment(source, start, seconds, max_seconds), 0
    contents = read_contents(_checked_bytes(source))
    if contents.problem:
        raise BadAudioError(*contents.problem)
    if start is not None:
        return *_segment_of_parts(contents.parts, start, None, max_seconds), 0
    return _read_parts(contents.parts, max_seconds)


def _segment(
    source: bytes | BinaryIO, start: float, seconds: float, max_seconds: float
) -> tuple[npt.NDArray[np.float32], int]:
    """Samples (T, C) and rate of a segment that ends within a file, whose end may be damaged."""
    _check_length(seconds, max_seconds)
    if not isinstance(source, bytes):
        segment = _segment_of_file(source, start, seconds)
        if segment is not None:
            return segment
        source.seek(0)
    return _segment_of_parts(read_contents(_checked_bytes(source)).parts, start, seconds, max_seconds)


def _checked_bytes(source: bytes | BinaryIO) -> bytes:
    """All bytes of a file. Raises BadAudioError if there are none, or if they are of a format that is not decoded."""
    data = source if isinstance(source, bytes) else source.read()
    if not data:
        raise BadAudioError("empty_file", "0 bytes")
    other = other_format(data)
    if other:
        raise BadAudioError(*other)
    return data


def sample_blocks(data: bytes) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """Yield a file's samples in blocks (T, C) with their rate, so that a long file is never decoded as a whole.

    Raises:
        BadAudioError: The audio is missing, damaged, cut off, or of a format that is not decoded. What is found only at
            the end of the file is raised there.
    """
    contents = read_contents(_checked_bytes(data))
    if contents.problem:
        raise BadAudioError(*contents.problem)
    shape, read, promised = None, 0, 0
    for part in contents.parts:
        with _opened(part) as audio:
            shape = _checked_shape(audio, shape)
            promised += audio.frames
            while len(block := audio.read(BLOCK, dtype="float32", always_2d=True)):
                read += len(block)
                yield block, audio.samplerate
    if not read:
        raise BadAudioError("zero_length", "no samples")
    if shape and read < promised:
        raise BadAudioError("truncated", f"{read / shape[0]:.2f} s of {promised / shape[0]:.2f} s")


class _Bytes(io.BytesIO):
    """A file in memory. Damaged MP3s make libsndfile seek to before its start: soundfile would print a traceback."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        before = {io.SEEK_CUR: self.tell(), io.SEEK_END: self.getbuffer().nbytes}.get(whence, 0)
        return super().seek(max(0, before + offset))


@contextmanager
def _opened(source: bytes | BinaryIO) -> Iterator[soundfile.SoundFile]:
    """A file that libsndfile can read. Raises BadAudioError where it can't, or fails while it reads."""
    try:
        audio = soundfile.SoundFile(_Bytes(source) if isinstance(source, bytes) else source)
    except soundfile.LibsndfileError as error:
        raise BadAudioError("unreadable", _libsndfile_message(error)) from None
    with audio:
        if audio.format not in CHECKED_FORMATS:
            raise BadAudioError("unsupported_format", f"the content is {audio.format_info}; {FIX}")
        if not LEAST_RATE <= audio.samplerate <= 768_000 or not 0 < audio.channels <= 64:
            raise BadAudioError("unreadable", f"{audio.channels} channels at {audio.samplerate} Hz; correct its header")
        try:
            yield audio
        except (soundfile.LibsndfileError, ValueError, OverflowError, MemoryError) as error:
            # The header was valid, the rest is not.
            raise BadAudioError("truncated", _libsndfile_message(error)) from None


def _read_parts(parts: list[bytes], max_seconds: float) -> tuple[npt.NDArray[np.float32], int, int]:
    """Samples (T, C) of all parts, their rate, and the number that the headers state."""
    blocks: list[npt.NDArray[np.float32]] = []
    promised, seconds, shape = 0, 0.0, None
    for part in parts:
        with _opened(part) as audio:
            shape = _checked_shape(audio, shape)
            if audio.frames < MAX_SECONDS * audio.samplerate:
                _check_length(seconds + audio.frames / audio.samplerate, max_seconds)
            blocks += _blocks(audio, max_seconds - seconds)
            promised += audio.frames
            seconds = sum(map(len, blocks)) / audio.samplerate
    rate, channels = shape or (SAMPLE_RATE, 1)
    return np.concatenate(blocks) if blocks else np.zeros((0, channels), dtype=np.float32), rate, promised


def _checked_shape(audio: soundfile.SoundFile, shape: tuple[int, int] | None) -> tuple[int, int]:
    """Rate and channels of a part. Raises BadAudioError if those of the parts before it were others."""
    own = (audio.samplerate, audio.channels)
    if shape and own != shape:
        kinds = " and ".join(f"{channels} channels at {rate} Hz" for rate, channels in (shape, own))
        raise BadAudioError("unreadable", f"joined from parts with {kinds}; write it as FLAC at one rate")
    return own


def _segment_of_file(file: BinaryIO, start: float, seconds: float) -> tuple[npt.NDArray[np.float32], int] | None:
    """Samples (T, C) and rate of a segment, of which only its own part is read.

    None if libsndfile does not know where samples are (MPEG, GSM), or does not find as many as the segment has.
    """
    try:
        with _opened(file) as audio:
            if audio.subtype.startswith("MPEG") or not audio.seekable():
                return None
            if round((start + seconds) * audio.samplerate) > audio.frames:
                return None
            audio.seek(round(start * audio.samplerate))
            samples_TC = audio.read(round(seconds * audio.samplerate), dtype="float32", always_2d=True)
            return samples_TC, audio.samplerate
    except BadAudioError:
        return None


def _segment_of_parts(
    parts: list[bytes], start: float, seconds: float | None, max_seconds: float
) -> tuple[npt.NDArray[np.float32], int]:
    """Samples (T, C) and rate of a segment, which may be in several parts; `seconds` is None up to the end."""
    blocks: list[npt.NDArray[np.float32]] = []
    before, shape = 0, None
    for part in parts:
        with _opened(part) as audio:
            shape = _checked_shape(audio, shape)
            first = max(0, round(start * audio.samplerate) - before)
            last = audio.frames
            if seconds is not None:
                last = min(last, round((start + seconds) * audio.samplerate) - before)
            if first < last:
                _check_length((last - first + sum(map(len, blocks))) / audio.samplerate, max_seconds)
                _skip(audio, first)
                blocks.append(audio.read(last - first, dtype="float32", always_2d=True))
            before += audio.frames
    rate = shape[0] if shape else SAMPLE_RATE
    if not blocks:
        raise BadAudioError("truncated", f"begins at {start:.2f} s of {before / rate:.2f} s")
    return np.concatenate(blocks), rate


def _skip(audio: soundfile.SoundFile, samples: int) -> None:
    """Pass over the first samples; codecs with a state (GSM, G.721) have to be decoded from their beginning."""
    if audio.seekable():
        audio.seek(samples)
        return
    while samples > 0 and len(block := audio.read(min(samples, BLOCK), dtype="float32")):
        samples -= len(block)


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise BadAudioError("too_long", f"{seconds:.2f} s, over the limit of {max_seconds:g} s")


def _blocks(audio: soundfile.SoundFile, max_seconds: float) -> list[npt.NDArray[np.float32]]:
    """All samples in blocks (T, C). A header may state any number, so memory is allocated as samples are read."""
    blocks: list[npt.NDArray[np.float32]] = []
    while len(block := audio.read(BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
        if len(blocks) * BLOCK > (max_seconds + 1) * audio.samplerate + BLOCK:
            raise BadAudioError("too_long", f"more than {max_seconds:g} s in one file")
    return blocks


def _libsndfile_message(error: Exception) -> str:
    """libsndfile's message, without the Python object that it read from."""
    text = getattr(error, "error_string", "")
    return " ".join(text.split())[:160] or one_line(error, 160)
