"""Decoding of audio files to mono 16 kHz samples, or the reason why a file is not usable."""

import functools
import io
import math
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from foldray.config.corpus import SAMPLE_RATE
from foldray.data.samples import MAX_SECONDS, BadAudioError, read_samples

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

MAX_TAPS = 2**20
SILENCE_PEAK = 1e-4  # -80 dB of full scale: below the noise of any microphone
ANTIPHASE_SHARE = 0.01  # of the channels' power, in the power of their sum: 20 dB are cancelled
CLIPPED_SHARE, CLIPPED_PEAK, FLAT = 0.1, 0.05, 0.999
"""Clipped: over a tenth of the samples are within 0.1 % of the peak. The maximum in AN4 is 0.01 %; of a square wave it
is all samples."""


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
        declared_seconds: Duration in the source's metadata; of a segment, its length (None up to the end of the file).
        start: Seconds into the file where a segment begins; None for the whole file.
        channel: Channel to take; None for the mean of all.
        max_seconds: Longer audio is refused before it is decoded.

    Returns:
        Mono samples at 16 kHz in [-1, 1], (T,).

    Raises:
        BadAudioError: The audio is missing, damaged, silent, clipped or too long.
    """
    samples_TC, rate, promised = read_samples(source, start, declared_seconds, max_seconds)
    if len(samples_TC) == 0:
        raise BadAudioError("zero_length", "no samples")
    if not np.isfinite(samples_TC).all():
        raise BadAudioError("not_finite", "NaN or infinite samples")
    seconds = len(samples_TC) / rate
    expected = max(promised / rate, declared_seconds or 0.0)
    # Manifests round durations, hence the tolerance of a tenth and 0.2 s.
    if seconds < 0.9 * expected - 0.2 or len(samples_TC) < promised:
        raise BadAudioError("truncated", f"{seconds:.2f} s of {expected:.2f} s")
    if declared_seconds and start is None and seconds > 1.1 * declared_seconds + 0.2:
        fix = "correct the duration, or give the row the offset 0 to read only that part"
        raise BadAudioError("longer_than_declared", f"{seconds:.2f} s, {declared_seconds:.2f} s declared; {fix}")
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
        return samples_TC[:, 0] if samples_TC.shape[1] == 1 else _mean_of_channels(samples_TC)
    if channel >= samples_TC.shape[1]:
        raise BadAudioError("no_such_channel", f"channel {channel} of {samples_TC.shape[1]}")
    return np.ascontiguousarray(samples_TC[:, channel])


def _mean_of_channels(samples_TC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The mean of all channels. Raises BadAudioError if they cancel each other, as of a balanced line in stereo."""
    mono_T: npt.NDArray[np.float32] = samples_TC.mean(axis=1, dtype=np.float32)
    channels = samples_TC.shape[1]
    # Without their offsets: independent channels, and a single one among silent ones, give a share of 1.
    power, total = float(mono_T.var()) * channels**2, float(samples_TC.var(axis=0).sum())
    if power < ANTIPHASE_SHARE * total and np.abs(samples_TC).max() >= SILENCE_PEAK:
        fix = "give the row a `channel` (0 is the first), or write the file with one"
        raise BadAudioError("antiphase", f"the mean of the {channels} channels cancels them; {fix}")
    return mono_T


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
