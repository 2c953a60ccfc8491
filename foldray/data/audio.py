"""Decoding of audio files to mono 16 kHz samples, or the reason why a file is not usable."""

import functools
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import one_line

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

BLOCK = 2**18
MAX_TAPS = 2**20
STREAMED_BYTES = 2**31 - 2**20  # streaming encoders write a greater number for an unknown length
HEADER_BYTES = 1024  # a SPHERE header; all others are shorter
MAX_SECONDS = 6 * 3600
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below the noise of any microphone
CLIPPED_SHARE, CLIPPED_PEAK, FLAT = 0.1, 0.05, 0.999
"""Clipped: over a tenth of the samples are within 0.1 % of the peak. The maximum in AN4 is 0.01 %; of a square wave it
is all samples."""

OTHER_FORMATS = {
    b"\x89png": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"gif8": "a GIF image",
    b"%pdf": "a PDF document",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"{": "JSON",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"\x1aE\xdf\xa3".lower(): "a Matroska or WebM file; write it as FLAC or OGG",
}
"""Formats of files with audio names that are not audio, by their first bytes in lower case."""


@dataclass(frozen=True)
class BadAudioError(Exception):
    """Audio that is not usable: a reason code to count by, and a detail that says how to fix it."""

    reason: str
    detail: str


def decode(
    source: bytes | BinaryIO,
    declared_seconds: float | None = None,
    start: float | None = None,
    channel: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> npt.NDArray[np.float32]:
    """Decode an audio file, or a segment of it.

    Args:
        source: The file's bytes, or a seekable file, of which a segment reads only its own part.
        declared_seconds: Duration in the source's metadata; of a segment, its length.
        start: Seconds into the file where a segment begins; None for the whole file.
        channel: Channel to take; None for the mean of all.
        max_seconds: Longer audio is refused before it is decoded.

    Returns:
        Mono samples at 16 kHz in [-1, 1], (T,).

    Raises:
        BadAudioError: The audio is missing, damaged, silent, clipped or too long.
    """
    samples_TC, rate, promised = _read(source, start, declared_seconds, max_seconds)
    if len(samples_TC) == 0:
        raise BadAudioError("zero_length", "no samples")
    if not np.isfinite(samples_TC).all():
        raise BadAudioError("not_finite", "NaN or infinite samples")
    seconds = len(samples_TC) / rate
    expected = max(promised / rate, declared_seconds or 0.0)
    # Manifests round durations, hence the tolerance of a tenth and 0.2 s.
    if seconds < 0.9 * expected - 0.2 or len(samples_TC) < promised:
        raise BadAudioError("truncated", f"{seconds:.2f} s of {expected:.2f} s")
    mono_T = np.clip(_mono(samples_TC, channel), -1, 1)  # the range of 16 bits
    peak = float(np.abs(mono_T).max())
    if peak < SILENCE_PEAK:
        raise BadAudioError("silent", f"peak below {SILENCE_PEAK:g} of full scale")
    flat = float(np.mean(np.abs(mono_T) >= FLAT * peak))
    if peak >= CLIPPED_PEAK and flat > CLIPPED_SHARE:
        raise BadAudioError("clipped", f"{flat:.0%} of the samples are at the peak")
    return mono_T if rate == SAMPLE_RATE else resample(mono_T, rate)


def _mono(samples_TC: npt.NDArray[np.float32], channel: int | None) -> npt.NDArray[np.float32]:
    if channel is None:
        return samples_TC[:, 0] if samples_TC.shape[1] == 1 else samples_TC.mean(axis=1, dtype=np.float32)
    if channel >= samples_TC.shape[1]:
        raise BadAudioError("no_such_channel", f"channel {channel} of {samples_TC.shape[1]}")
    return np.ascontiguousarray(samples_TC[:, channel])


def _read(
    source: bytes | BinaryIO, start: float | None, seconds: float | None, max_seconds: float
) -> tuple[npt.NDArray[np.float32], int, int]:
    """Samples (T, C), their rate, and the number that the header declares (0 if unknown, or for a segment)."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    header = file.read(HEADER_BYTES)
    file.seek(0)
    if not header:
        raise BadAudioError("empty_file", "0 bytes")
    if isinstance(source, bytes):
        _check_whole(source)
    unknown_length = _flac_of_unknown_length(header)
    try:
        audio = soundfile.SoundFile(io.BytesIO(unknown_length + file.read()[len(header) :]) if unknown_length else file)
    except soundfile.LibsndfileError as error:
        raise BadAudioError(*_not_decodable(header, error)) from None
    with audio:
        rate = audio.samplerate
        if not 0 < rate <= 768_000 or not 0 < audio.channels <= 64:
            raise BadAudioError("unreadable", f"{audio.channels} channels at {rate} Hz")
        try:
            if start is not None and seconds is not None:
                _check_length(seconds, max_seconds)
                return _segment(audio, round(start * rate), round(seconds * rate)), rate, 0
            if unknown_length:
                # soundfile seeks after every read, which FLAC of unknown length does not support.
                audio.seekable = lambda: False
            elif audio.frames < MAX_SECONDS * rate:
                _check_length(audio.frames / rate, max_seconds)
            samples_TC = _blocks(audio, max_seconds)
        except (
            soundfile.LibsndfileError,
            ValueError,
            OverflowError,
            MemoryError,
        ) as error:  # the header was valid, the rest is not
            raise BadAudioError("truncated", _libsndfile_message(error)) from None
        promised = 0 if unknown_length or audio.frames >= MAX_SECONDS * rate else audio.frames
        return samples_TC, rate, promised


def _check_whole(data: bytes) -> None:
    """Compare a WAV or AIFF file with the length in its header; libsndfile reads a cut-off one without an error."""
    if data[:4] not in (b"RIFF", b"FORM"):
        return
    promised = int.from_bytes(data[4:8], "little" if data[:4] == b"RIFF" else "big") + 8
    if len(data) < promised < STREAMED_BYTES:
        raise BadAudioError("truncated", f"{len(data)} of {promised} bytes")


def _segment(audio: soundfile.SoundFile, first: int, count: int) -> npt.NDArray[np.float32]:
    if first >= audio.frames:
        raise BadAudioError(
            "truncated", f"begins at {first / audio.samplerate:.2f} s of {audio.frames / audio.samplerate:.2f} s"
        )
    audio.seek(first)
    samples_TC: npt.NDArray[np.float32] = audio.read(min(count, audio.frames), dtype="float32", always_2d=True)
    return samples_TC


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise BadAudioError("too_long", f"{seconds:.2f} s, over the limit of {max_seconds:g} s")


def _blocks(audio: soundfile.SoundFile, max_seconds: float) -> npt.NDArray[np.float32]:
    """All samples (T, C). A header may declare any number (of streamed FLAC the largest possible), so memory is
    allocated block by block as samples are read."""
    blocks: list[npt.NDArray[np.float32]] = []
    while len(block := audio.read(BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
        if len(blocks) * BLOCK > (max_seconds + 1) * audio.samplerate + BLOCK:
            raise BadAudioError("too_long", f"more than {max_seconds:g} s in one file")
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)


def _flac_of_unknown_length(header: bytes) -> bytes | None:
    """The header of a FLAC file of unknown length (0), which streaming encoders write, with the maximum length instead.

    libsndfile reads 0 as 'no samples'; with a length, it decodes to the end. None for all other files.
    """
    if header[:4] != b"fLaC" or len(header) < 26 or header[4] & 0x7F or header[21] & 0x0F or any(header[22:26]):
        return None
    return header[:21] + bytes([header[21] | 0x0F]) + b"\xff" * 4 + header[26:]


def _not_decodable(header: bytes, error: Exception) -> tuple[str, str]:
    """Reason and detail for a file that libsndfile cannot open."""
    if header.startswith(b"NIST_1A") and b"shorten" in header:
        return "unreadable", "SPHERE compressed with shorten; write it as WAV or FLAC with sph2pipe"
    for start, kind in OTHER_FORMATS.items():
        if header.lstrip().lower().startswith(start):
            return "not_audio", f"the content is {kind}, despite the file name"
    return "unreadable", _libsndfile_message(error)


def _libsndfile_message(error: Exception) -> str:
    """libsndfile's message, without the Python object that it read from."""
    text = getattr(error, "error_string", "")
    return " ".join(text.split())[:160] or one_line(error, 160)


def resample(mono_T: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """Resample mono samples (T,) from `rate` Hz (or `near_rate` of it) to 16 kHz: ceil(T * 16000 / rate) samples."""
    import torch

    rate = near_rate(rate)
    count = -(-len(mono_T) * SAMPLE_RATE // rate)
    # Lengths are padded to whole quarters of a second: torch prepares a convolution for every new length, which takes
    # twice as long as the resampling itself (measured by `python -m benchmarks prepare`).
    quarter = max(1, rate // 4)
    padded_T = np.zeros(-(-len(mono_T) // quarter) * quarter, dtype=np.float32)
    padded_T[: len(mono_T)] = mono_T
    resampled: npt.NDArray[np.float32] = _resampler(rate)(torch.from_numpy(padded_T)).numpy()[:count]
    return resampled


def near_rate(rate: int) -> int:
    """The rate itself if its filter is small, as for all usual rates, else the nearest multiple of 50 Hz.

    The filter has (16000 / g) x (rate / g) taps with g = gcd(16000, rate): at 11,127 Hz it would take 6 GB.
    """
    shared = math.gcd(rate, SAMPLE_RATE)
    taps = (SAMPLE_RATE // shared) * (rate // shared)
    return rate if taps <= MAX_TAPS else max(50, 50 * round(rate / 50))


@functools.lru_cache(maxsize=16)
def _resampler(rate: int) -> "Resample":
    """Cached by rate: torchaudio would compute the filter again for every utterance."""
    import torchaudio

    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def encode_flac(mono_T: npt.NDArray[np.float32]) -> bytes:
    """Encode samples (T,) as 16-bit FLAC at 16 kHz; values outside [-1, 1] are clipped."""
    target = io.BytesIO()
    pcm = np.clip(np.rint(mono_T * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(target, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return target.getvalue()


def decode_flac(data: bytes) -> npt.NDArray[np.float32]:
    """Decode the output of `encode_flac` to samples (T,)."""
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    return np.asarray(samples, dtype=np.float32)
