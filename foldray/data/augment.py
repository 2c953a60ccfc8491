"""Augmentation: speed, noise, volume, and masks of features.

Everything is drawn from a generator that depends only on (seed, epoch, utterance id), not on the worker or the batch.
torchaudio's own masks and noise draw from torch's global generator, which the loading threads would share with the
training thread's dropout; so the draws are made here.
"""

import hashlib
import logging
import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt
from torch import Tensor

from foldray import storage
from foldray.config.augment import AugmentSpec
from foldray.data.audio import SILENCE_PEAK, decode, resample
from foldray.data.epoch import samples_at_speed, speed_rate
from foldray.data.samples import BadAudioError
from foldray.errors import UserError

Samples = npt.NDArray[np.float32]

WINDOWS_PER_SECOND = 100
NOISE_CACHE_SAMPLES = 16_000_000

_log = logging.getLogger(__name__)


def utterance_rng(seed: int, epoch: int, utterance: str) -> np.random.Generator:
    """The random generator of an utterance's augmentation in one epoch."""
    digest = hashlib.sha256(f"{seed} {epoch} {utterance}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def change_speed(samples_T: Samples, factor: float) -> Samples:
    """Resample (T,) to (T',) so that the audio runs `factor` times as fast; the pitch changes too.

    T' is the length that the epoch plan computes for this factor.
    """
    if factor == 1.0:
        return samples_T
    planned = int(samples_at_speed(np.array(len(samples_T)), factor))
    faster_T = resample(samples_T, speed_rate(factor))[:planned]
    return np.pad(faster_T, (0, planned - len(faster_T)))


class WaveformAugmenter:
    """Adds noise and changes the volume as configured. Raises UserError if the noise recordings are missing."""

    def __init__(self, augment: AugmentSpec) -> None:
        self._augment = augment
        self._noises = Noises(augment.noise_path) if augment.noise_path and augment.noise_share else None

    def __call__(self, samples_T: Samples, rng: np.random.Generator) -> Samples:
        """Augment samples (T,) with values drawn from `rng`."""
        augment = self._augment
        if augment.noise_share and rng.uniform() < augment.noise_share:
            snr_db = rng.uniform(*augment.noise_snr_db)
            count = len(samples_T)
            noise_T = self._noises.draw(count, rng) if self._noises else coloured_noise(count, rng)
            samples_T = add_noise(samples_T, noise_T, snr_db)
        if augment.volume_db:
            samples_T = samples_T * np.float32(10 ** (rng.uniform(-1, 1) * augment.volume_db / 20))
        return samples_T


def add_noise(samples_T: Samples, noise_T: Samples, snr_db: float) -> Samples:
    """Add noise to speech at a signal-to-noise ratio in decibels; silent noise leaves the speech unchanged."""
    import torch
    import torchaudio

    if float(np.abs(noise_T).max()) < SILENCE_PEAK:
        return samples_T  # its power is 0, so the gain would be NaN
    noisy: Samples = torchaudio.functional.add_noise(
        torch.from_numpy(samples_T), torch.from_numpy(noise_T), torch.tensor(snr_db, dtype=torch.float32)
    ).numpy()
    return noisy


def coloured_noise(count: int, rng: np.random.Generator) -> Samples:
    """Noise whose power falls with frequency by a random exponent, from white (0) to brown (2)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    slope = rng.uniform(0, 2)
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-slope / 2)
    return np.fft.irfft(spectrum, count).astype(np.float32)


class Noises:
    """Noise recordings below a folder or URI. Recently used ones stay decoded, up to `NOISE_CACHE_SAMPLES` samples."""

    def __init__(self, path: str) -> None:
        self._folder = storage.absolute(path)
        found = storage.list_tree(self._folder)
        self._names = sorted(name for name in found if name.lower().endswith((".wav", ".flac", ".ogg", ".mp3")))
        if not self._names:
            raise UserError("augment.noise_path", f"{self._folder} has no audio; name a folder with WAV, FLAC or OGG")
        self._cache: OrderedDict[str, Samples] = OrderedDict()
        self._lock = threading.Lock()

    def draw(self, count: int, rng: np.random.Generator) -> Samples:
        """`count` samples from a random position of a random recording, repeated if it is too short.

        An unusable recording counts as silence, so that the draws of other utterances do not depend on it.
        """
        noise_T = self._decoded(self._names[int(rng.integers(len(self._names)))])
        start = int(rng.integers(len(noise_T)))
        return np.take(noise_T, np.arange(start, start + count), mode="wrap")

    def _decoded(self, name: str) -> Samples:
        with self._lock:
            if name in self._cache:
                self._cache.move_to_end(name)
                return self._cache[name]
        file = storage.join(self._folder, name)
        try:
            noise_T = decode(storage.read_bytes(file))
        except BadAudioError as bad:
            _log.warning("%s is not usable as noise (%s: %s)", file, bad.reason, bad.detail)
            noise_T = np.zeros(1, dtype=np.float32)
        with self._lock:
            self._cache[name] = noise_T
            while len(self._cache) > 1 and sum(map(len, self._cache.values())) > NOISE_CACHE_SAMPLES:
                self._cache.popitem(last=False)
        return noise_T


def mask_features(windows_TF: Tensor, augment: AugmentSpec, rng: np.random.Generator) -> None:
    """Set random stretches of time and frequency of log-mel windows (T, F) to zero, their mean, in place.

    Source: SpecAugment, arXiv 1904.08779, section 2, without time warping.
    """
    windows, bins = windows_TF.shape
    longest = min(augment.time_mask_seconds * WINDOWS_PER_SECOND, augment.time_mask_share * windows)
    for _ in range(augment.time_masks):
        width = int(rng.uniform(0, longest))
        start = int(rng.integers(0, windows - width + 1))
        windows_TF[start : start + width] = 0
    for _ in range(augment.frequency_masks):
        width = int(rng.integers(0, min(augment.frequency_mask_bins, bins) + 1))
        start = int(rng.integers(0, bins - width + 1))
        windows_TF[:, start : start + width] = 0
