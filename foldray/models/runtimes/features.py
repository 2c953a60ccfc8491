"""Feature extractors as torch modules, for graphs that begin with the waveform of one utterance.

They equal the stock extractors of transformers on one utterance without padding. A Fourier transform is a convolution
with fixed kernels: every runtime has that operation, and quantisation of matrix products leaves it in float32.
"""

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from foldray.models.families import family_of
from foldray.models.features import build_extractor
from foldray.models.folded_model import FoldedModel


class WaveformInputs(nn.Module):
    """The inputs of a stock model from the samples (1, N) of one utterance at 16 kHz."""

    def __init__(self, stock: FoldedModel) -> None:
        super().__init__()
        self._family, self._stock = family_of(stock), [stock]  # in a list: the model is no part of its features
        extractor = build_extractor(stock)
        self.features = _EXTRACTORS[type(extractor).__name__](extractor)
        self._masks = bool(extractor.return_attention_mask)
        self._mask_of_samples = type(extractor).__name__ in _NORMALIZING

    def forward(self, samples_1N: Tensor) -> dict[str, Tensor]:
        whole = self._family.whole_samples(self._stock[0], samples_1N.shape[1])
        samples_1N = samples_1N[:, :whole]
        features = self.features(samples_1N)
        inputs = {self._family.inputs: features}
        if self._masks:
            masked = samples_1N if self._mask_of_samples else features[:, :, 0]
            inputs[self._family.mask] = torch.ones_like(masked, dtype=torch.int64)
        return inputs


class NormalizedWaveform(nn.Module):
    """Zero mean and unit variance, as far as the extractor asks for them."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self._normalize = extractor.do_normalize
        self._eps, self._channel = _NORMALIZING[type(extractor).__name__]

    def forward(self, samples_1N: Tensor) -> Tensor:
        if self._normalize:
            centred_1N = samples_1N - samples_1N.mean(1, keepdim=True)
            samples_1N = centred_1N / (centred_1N.pow(2).mean(1, keepdim=True) + self._eps).sqrt()
        return samples_1N[:, None] if self._channel else samples_1N


class _LogMel(nn.Module):
    """Log-mel windows (1, T, F): a convolution to the spectrum, its power, mel bins, the logarithm."""

    def __init__(self, kernel_SW: npt.NDArray[np.float64], mel_MF: Any, hop: int) -> None:
        """Take kernels as `_spectrum` returns them, and the weights of F mel bins over M frequencies."""
        super().__init__()
        self._hop = hop
        self.kernel = torch.tensor(kernel_SW[:, None], dtype=torch.float32)
        weights_FM = torch.as_tensor(np.asarray(mel_MF)).T.contiguous()
        self.mel = weights_FM[:, :, None].float()

    def power(self, samples_1N: Tensor) -> Tensor:
        """Power in mel bins, (1, F, T)."""
        spectrum_1ST = functional.conv1d(samples_1N[:, None], self.kernel, stride=self._hop)
        real, imaginary = spectrum_1ST.chunk(2, dim=1)
        return functional.conv1d(real.pow(2) + imaginary.pow(2), self.mel)


def _spectrum(window_W: npt.NDArray[Any], size: int) -> npt.NDArray[np.float64]:
    """Kernels (2 * (size/2 + 1), W) of the real and the imaginary part."""
    fourier = np.fft.rfft(np.diag(np.asarray(window_W, np.float64)), n=size).T
    return np.concatenate([fourier.real, fourier.imag])


class ParakeetLogMel(_LogMel):
    """Parakeet: pre-emphasis of the waveform, centred windows, each bin normalized over the utterance."""

    def __init__(self, extractor: Any) -> None:
        size = extractor.n_fft
        window = torch.hann_window(extractor.win_length, periodic=False, dtype=torch.float64).numpy()
        left = (size - extractor.win_length) // 2
        padded = np.pad(window, (left, size - extractor.win_length - left))
        super().__init__(_spectrum(padded, size), extractor.mel_filters.T, extractor.hop_length)
        stock = importlib.import_module(type(extractor).__module__)
        self._guard, self._eps = stock.LOG_ZERO_GUARD_VALUE, stock.EPSILON
        self._emphasis, self._edge = extractor.preemphasis or 0.0, size // 2

    def forward(self, samples_1N: Tensor) -> Tensor:
        emphasized_1N = samples_1N - self._emphasis * functional.pad(samples_1N, (1, 0))[:, :-1]
        # The stock extractor masks the last window.
        power_1FT = self.power(functional.pad(emphasized_1N, (self._edge, self._edge)))[:, :, :-1]
        log_1FT = (power_1FT + self._guard).log()
        centred_1FT = log_1FT - log_1FT.mean(2, keepdim=True)
        deviation_1F1 = (centred_1FT.pow(2).sum(2, keepdim=True) / (centred_1FT.shape[2] - 1)).sqrt()
        normalized_1FT: Tensor = centred_1FT / (deviation_1F1 + self._eps)
        return normalized_1FT.transpose(1, 2)


class LasrLogMel(_LogMel):
    """LASR: windows inside the audio, without normalization."""

    def __init__(self, extractor: Any) -> None:
        window = torch.hann_window(extractor.win_length, periodic=False, dtype=torch.float64).numpy()
        super().__init__(_spectrum(window, extractor.n_fft), extractor.mel_filters, extractor.hop_length)

    def forward(self, samples_1N: Tensor) -> Tensor:
        return self.power(samples_1N).clamp(min=1e-5).log().transpose(1, 2)


class KaldiLogMel(_LogMel):
    """Wav2Vec2-BERT: Kaldi's filter banks, each bin normalized, several windows stacked into one frame."""

    def __init__(self, extractor: Any) -> None:
        width = len(extractor.window)
        without_mean = np.eye(width) - 1 / width
        emphasis = np.eye(width) - 0.97 * np.eye(width, k=-1)
        emphasis[0, 0] -= 0.97  # as if the first sample were there twice
        kernel = _spectrum(extractor.window, 512) @ emphasis @ without_mean * 2**15
        super().__init__(kernel, extractor.mel_filters, 160)
        self._stride = extractor.stride

    def forward(self, samples_1N: Tensor) -> Tensor:
        log_1FT = self.power(samples_1N).clamp(min=1.192092955078125e-07).log()
        centred_1FT = log_1FT - log_1FT.mean(2, keepdim=True)
        variance_1F1 = centred_1FT.pow(2).sum(2, keepdim=True) / (centred_1FT.shape[2] - 1)
        windows_1TF = (centred_1FT / (variance_1F1 + 1e-7).sqrt()).transpose(1, 2)
        return windows_1TF.reshape(1, -1, self._stride * windows_1TF.shape[2])


_NORMALIZING = {"Wav2Vec2FeatureExtractor": (1e-7, False), "OmniASRFeatureExtractor": (1e-5, True)}
"""Extractors of waveforms: what is added to the variance, and whether the waveform has an axis of channels."""

_EXTRACTORS: dict[str, Any] = {
    **dict.fromkeys(_NORMALIZING, NormalizedWaveform),
    "ParakeetFeatureExtractor": ParakeetLogMel,
    "LasrFeatureExtractor": LasrLogMel,
    "SeamlessM4TFeatureExtractor": KaldiLogMel,
}
