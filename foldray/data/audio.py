"""Decoding: any audio file to mono 16 kHz samples, or the reason why not."""

import functools
import io
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import one_line

BLOCK = 2**18
MOST_TAPS = 2**20
STREAMED_BYTES = 2**31 - 2**20  # what streaming encoders write for a length they don't know is greater
HEAD = 1024  # a SPHERE header, and more than any other needs
MAX_SECONDS = 6 * 3600
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below the noise of any microphone
CLIPPED_SHARE, CLIPPED_PEAK, FLAT = 0.1, 0.05, 0.999
"""Clipped beyond use: over a tenth of the samples within 0.1 % of the peak. The most in AN4 is 0.01 %; a square
wave has all of them there."""

OTHER_KINDS = {
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
"""What files under audio names turn out to be, by how they begin (in lower case)."""


@dataclass(frozen=True)
class BadAudioError(Exception):
    """Audio that training can't use: a short reason to count by, and a detail to mend by."""

    reason: str
    detail: str


def decode(
    source: bytes | BinaryIO,
    declared_seconds: float | None = None,
    start: float | None = None,
    channel: int | None = None,
    max_seconds: float = MAX_SECONDS,
) -> npt.NDArray[np.float32]:
    """Mono samples at 16 kHz, shape (T,), of an audio file, or of `declared_seconds` of it from `start` on.

    source: the file's bytes, or the file, open for reading at any place, of which a segment reads only
    what it needs. channel: which one to take; None for the mean of all. max_seconds: no more than that
    is ever decoded. Raises BadAudioError.
    """
    samples_TC, rate, promised = _read(source, start, declared_seconds, max_seconds)
    if len(samples_TC) == 0:
        raise BadAudioError("zero_length", "no samples")
    if not np.isfinite(samples_TC).all():
        raise BadAudioError("not_finite", "NaN or infinite samples")
    seconds = len(samples_TC) / rate
    expected = max(promised / rate, declared_seconds or 0.0)
    # Manifests round durations, so a tenth and 0.2 s are forgiven.
    if seconds < 0.9 * expected - 0.2 or len(samples_TC) < promised:
        raise BadAudioError("truncated", f"{seconds:.2f} s of {expected:.2f} s")
    mono_T = np.clip(_mono(samples_TC, channel), -1, 1)  # as 16 bits will hold it
    peak = float(np.abs(mono_T).max())
    if peak < SILENCE_PEAK:
        raise BadAudioError("silent", f"peak below {SILENCE_PEAK:g} of full scale")
    flat = float(np.mean(np.abs(mono_T) >= FLAT * peak))
    if peak >= CLIPPED_PEAK and flat > CLIPPED_SHARE:
        raise BadAudioError("clipped", f"{flat:.0%} of the samples stand at the peak")
    return mono_T if rate == SAMPLE_RATE else resample(mono_T, rate)


def _mono(samples_TC: npt.NDArray[np.float32], channel: int | None) -> npt.NDArray[np.float32]:
    if channel is None:
        return samples_TC[:, 0] if samples_TC.shape[1] == 1 else samples_TC.mean(axis=1, dtype=np.float32)
    if channel >= samples_TC.shape[1]:
        raise BadAudioError("no_such_channel", f"channel {channel} of {samples_TC.shape[1]}")
    return np.ascontiguousarray(samples_TC[:, channel])


def _read(
    source: bytes | BinaryIO, start: float | None, seconds: float | None, most: float
) -> tuple[npt.NDArray[np.float32], int, int]:
    """Samples (T, C), their rate, and how many the header promised (0 where it does not say, or of a segment)."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise BadAudioError("empty_file", "0 bytes")
    if isinstance(source, bytes):
        _check_whole(source)
    unknown_length = _flac_of_unknown_length(head)
    try:
        audio = soundfile.SoundFile(io.BytesIO(unknown_length + file.read()[len(head) :]) if unknown_length else file)
    except soundfile.LibsndfileError as error:
        raise BadAudioError(*_not_decodable(head, error)) from None
    with audio:
        rate = audio.samplerate
        if not 0 < rate <= 768_000 or not 0 < audio.channels <= 64:
            raise BadAudioError("unreadable", f"{audio.channels} channels at {rate} Hz")
        try:
            if start is not None and seconds is not None:
                _check_length(seconds, most)
                return _segment(audio, round(start * rate), round(seconds * rate)), rate, 0
            if unknown_length:
                # soundfile seeks after every read, which FLAC of unknown length can't; reading on needs none.
                audio.seekable = lambda: False
            elif audio.frames < MAX_SECONDS * rate:
                _check_length(audio.frames / rate, most)
            samples_TC = _blocks(audio, most)
        except (
            soundfile.LibsndfileError,
            ValueError,
            OverflowError,
            MemoryError,
        ) as error:  # the header was whole, the rest is not
            raise BadAudioError("truncated", _said(error)) from None
        promised = 0 if unknown_length or audio.frames >= MAX_SECONDS * rate else audio.frames
        return samples_TC, rate, promised


def _check_whole(data: bytes) -> None:
    """A WAV or AIFF file says how long it is; libsndfile reads one that was cut off as if nothing were missing."""
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


def _check_length(seconds: float, most: float) -> None:
    if seconds > most:
        raise BadAudioError("too_long", f"{seconds:.2f} s, over the limit of {most:g} s")


def _blocks(audio: soundfile.SoundFile, most: float) -> npt.NDArray[np.float32]:
    """All samples (T, C). A header may promise any number (streamed FLAC the largest there is), so memory is
    taken block by block as samples arrive, not on its word."""
    blocks: list[npt.NDArray[np.float32]] = []
    while len(block := audio.read(BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
        if len(blocks) * BLOCK > (most + 1) * audio.samplerate + BLOCK:
            raise BadAudioError("too_long", f"more than {most:g} s in one file")
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)


def _flac_of_unknown_length(head: bytes) -> bytes | None:
    """The head of a FLAC file that says 'length unknown', as streaming encoders do, with the greatest length there is.

    libsndfile takes 0 for 'no samples'; given a length, it decodes to the end. None for all other files.
    """
    if head[:4] != b"fLaC" or len(head) < 26 or head[4] & 0x7F or head[21] & 0x0F or any(head[22:26]):
        return None
    return head[:21] + bytes([head[21] | 0x0F]) + b"\xff" * 4 + head[26:]


def _not_decodable(head: bytes, error: Exception) -> tuple[str, str]:
    """Reason and detail for a file that libsndfile does not open."""
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        return "unreadable", "SPHERE compressed with shorten; write it as WAV or FLAC with sph2pipe"
    for begins, kind in OTHER_KINDS.items():
        if head.lstrip().lower().startswith(begins):
            return "not_audio", f"the content is {kind}, whatever the name says"
    return "unreadable", _said(error)


def _said(error: Exception) -> str:
    """libsndfile's own words, without the Python object that it read from."""
    text = getattr(error, "error_string", "")
    return " ".join(text.split())[:160] or one_line(error, 160)


def resample(mono_T: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    """Samples at 16 kHz of samples at another rate: ceil(T * 16000 / rate) of them, at the nearest rate there is."""
    import torch

    rate = near_rate(rate)
    count = -(-len(mono_T) * SAMPLE_RATE // rate)
    # Lengths in whole quarters of a second, zeros at the end: torch prepares a convolution for every length it has
    # not met, which takes twice as long as the resampling itself (as in the bare loop of `foldray bench prepare`).
    quarter = max(1, rate // 4)
    padded_T = np.zeros(-(-len(mono_T) // quarter) * quarter, dtype=np.float32)
    padded_T[: len(mono_T)] = mono_T
    resampled: npt.NDArray[np.float32] = _resampler(rate)(torch.from_numpy(padded_T)).numpy()[:count]
    return resampled


def near_rate(rate: int) -> int:
    """The rate itself where it shares enough with 16 kHz, as all usual ones do, else the nearest multiple of 50 Hz.

    The filter has (16000 / g) x (rate / g) taps, g being what they share: 11,127 Hz alone would take 6 GB.
    """
    shared = math.gcd(rate, SAMPLE_RATE)
    taps = (SAMPLE_RATE // shared) * (rate // shared)
    return rate if taps <= MOST_TAPS else max(50, 50 * round(rate / 50))


@functools.lru_cache(maxsize=16)
def _resampler(rate: int) -> Any:
    """Kept for each rate: torchaudio would compute the filter anew for every utterance."""
    import torchaudio

    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def encode_flac(mono_T: npt.NDArray[np.float32]) -> bytes:
    """16-bit FLAC of samples in [-1, 1]; beyond that they are clipped."""
    target = io.BytesIO()
    pcm = np.clip(np.rint(mono_T * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(target, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return target.getvalue()


def decode_flac(data: bytes) -> npt.NDArray[np.float32]:
    """Samples, shape (T,), of what `encode_flac` wrote."""
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    return np.asarray(samples, dtype=np.float32)
