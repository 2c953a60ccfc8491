"""Decoding: any audio file to mono 16 kHz samples, or the reason why not."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile

from foldray.spec import SAMPLE_RATE

BLOCK = 2**18
MAX_SECONDS = 6 * 3600
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below the noise of any microphone


@dataclass(frozen=True)
class BadAudioError(Exception):
    """Audio that training can't use: a short reason to count by, and a detail to mend by."""

    reason: str
    detail: str


def decode(data: bytes, declared_seconds: float | None = None, start: float | None = None) -> npt.NDArray[np.float32]:
    """Mono samples at 16 kHz, shape (T,), of an audio file, or of `declared_seconds` of it from `start` on.

    Raises BadAudioError.
    """
    samples_TC, rate, promised = _read(data)
    if start is not None and declared_seconds is not None:
        first = round(start * rate)
        samples_TC, promised = samples_TC[first : first + round(declared_seconds * rate)], 0
    if len(samples_TC) == 0:
        raise BadAudioError("zero_length", "no samples")
    if not np.isfinite(samples_TC).all():
        raise BadAudioError("not_finite", "NaN or infinite samples")
    seconds = len(samples_TC) / rate
    expected = max(promised / rate, declared_seconds or 0.0)
    # Manifests round durations, so a tenth and 0.2 s are forgiven.
    if seconds < 0.9 * expected - 0.2 or len(samples_TC) < promised:
        raise BadAudioError("truncated", f"{seconds:.2f} s of {expected:.2f} s")
    mono_T = samples_TC.mean(axis=1, dtype=np.float32)
    if np.abs(mono_T).max() < SILENCE_PEAK:
        raise BadAudioError("silent", f"peak below {SILENCE_PEAK:g} of full scale")
    return mono_T if rate == SAMPLE_RATE else _resample(mono_T, rate)


def _read(data: bytes) -> tuple[npt.NDArray[np.float32], int, int]:
    """Samples (T, C), their rate, and how many the header promised (0 where it does not say)."""
    if not data:
        raise BadAudioError("empty_file", "0 bytes")
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise BadAudioError("unreadable", _one_line(error)) from None
    with file:
        if not 0 < file.samplerate <= 768_000 or not 0 < file.channels <= 64:
            raise BadAudioError("unreadable", f"{file.channels} channels at {file.samplerate} Hz")
        # A header may promise any number (streamed FLAC the largest there is), so memory is taken
        # block by block as samples arrive, not on its word.
        blocks: list[npt.NDArray[np.float32]] = []
        try:
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
                if len(blocks) * BLOCK > MAX_SECONDS * file.samplerate:
                    raise BadAudioError("too_long", f"more than {MAX_SECONDS} s in one file")
        except (soundfile.LibsndfileError, ValueError, MemoryError) as error:  # the header was whole, the rest is not
            raise BadAudioError("truncated", _one_line(error)) from None
        samples_TC = np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)
        return samples_TC, file.samplerate, file.frames if file.frames < MAX_SECONDS * file.samplerate else 0


def _one_line(error: Exception) -> str:
    # libsndfile's own words, without the Python object that it read from.
    text = getattr(error, "error_string", "") or str(error)
    return " ".join(text.split())[:160] or type(error).__name__


def _resample(mono_T: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float32]:
    import torch
    import torchaudio

    resampled: npt.NDArray[np.float32] = torchaudio.functional.resample(
        torch.from_numpy(mono_T), rate, SAMPLE_RATE
    ).numpy()
    return resampled


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
