"""CTC models in the layouts of onnx-asr (NeMo's Conformer) and sherpa-onnx (Omnilingual ASR)."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from foldray.config.corpus import SAMPLE_RATE
from foldray.errors import UserError
from foldray.models.families import family_of
from foldray.models.features import build_extractor
from foldray.models.fold import ctc_logits
from foldray.models.folded_model import FoldedModel
from foldray.models.onnx import FREE, save_graph
from foldray.models.runtimes.features import WaveformInputs

MEL_BINS = (80, 128)
"""Numbers of mel bins for which onnx-asr computes features."""


class TextLogProbs(nn.Module):
    """Log-probabilities of the tokens that are text, from logits.

    `<unk>` and a decoder's end token are no text: foldray drops them after repeats are merged, as it does with the
    blank. A runtime knows only the blank, so it gets the best score of the three kinds.
    """

    def __init__(self, tokens: int) -> None:
        """Take the number of tokens; outputs beyond them belong to a decoder."""
        super().__init__()
        self._tokens = tokens

    def forward(self, logits_BTV: Tensor) -> Tensor:
        scores_BTV = logits_BTV.log_softmax(-1)
        silent_BT2 = torch.cat([scores_BTV[..., :2], scores_BTV[..., self._tokens :]], -1)
        blank_BT1 = silent_BT2.amax(-1, keepdim=True)
        never_BT1 = torch.full_like(blank_BT1, -1e4)
        return torch.cat([blank_BT1, never_BT1, scores_BTV[..., 2 : self._tokens]], -1)


class NemoCtc(nn.Module):
    """(B, F, T) windows and (B,) lengths to (B, T', V) log-probabilities, as NeMo exports a Conformer."""

    def __init__(self, stock: FoldedModel, tokens: int) -> None:
        super().__init__()
        self.stock, self.text = stock, TextLogProbs(tokens)

    def forward(self, audio_signal_BFT: Tensor, length_B: Tensor) -> Tensor:
        mask_BT = torch.arange(audio_signal_BFT.shape[2])[None] < length_B[:, None]
        output = self.stock(input_features=audio_signal_BFT.transpose(1, 2), attention_mask=mask_BT)
        log_probs_BTV: Tensor = self.text(ctc_logits(output))
        return log_probs_BTV


class WaveformCtc(nn.Module):
    """(1, N) samples, normalized as sherpa-onnx does, to (1, T', V) log-probabilities."""

    def __init__(self, stock: FoldedModel, tokens: int) -> None:
        super().__init__()
        self.inputs, self.stock, self.text = WaveformInputs(stock), stock, TextLogProbs(tokens)

    def forward(self, normalized_1N: Tensor) -> Tensor:
        log_probs_1TV: Tensor = self.text(ctc_logits(self.stock(**self.inputs(undo_normalization(normalized_1N)))))
        return log_probs_1TV


SHERPA_EPS = 1e-5
"""What sherpa-onnx adds to the variance of the waveform before it divides by the root."""


def undo_normalization(normalized_1N: Tensor) -> Tensor:
    """Restore the loudness of a waveform that sherpa-onnx normalized; its mean stays zero.

    The variance r that is left after the division of a waveform with variance v is v / (v + eps), hence
    v = eps * r / (1 - r). In float64, because r is close to one.
    """
    left_11 = normalized_1N.double().pow(2).mean(1, keepdim=True)
    variance_11 = SHERPA_EPS / (1 - left_11).clamp(min=1e-6)
    return normalized_1N * variance_11.sqrt().float()


def check_nemo(stock: FoldedModel) -> None:
    """Raise UserError unless onnx-asr computes the features that a CTC model was trained on."""
    family, extractor = family_of(stock), build_extractor(stock)
    fix = "use sherpa-onnx, whose graph computes the features itself"
    if type(extractor).__name__ != "ParakeetFeatureExtractor":
        raise UserError("--format", f"onnx-asr has no features of {family.name}; {fix}")
    usual = type(extractor)(feature_size=extractor.feature_size)
    if extractor.feature_size not in MEL_BINS:
        known = " or ".join(map(str, MEL_BINS))
        raise UserError(
            "--format", f"onnx-asr computes NeMo's {known} mel bins, this model takes {extractor.feature_size}; {fix}"
        )
    for name in ("hop_length", "n_fft", "win_length", "preemphasis"):
        ours, nemo = getattr(extractor, name), getattr(usual, name)
        if ours != nemo:
            raise UserError(
                "--format", f"onnx-asr computes features with {name} {nemo}, this model takes {ours}; {fix}"
            )


def write_nemo(stock: FoldedModel, tokens: int, file: Path) -> dict[str, object]:
    """Write `model.onnx` of onnx-asr's NeMo layout; returns its `config.json`."""
    check_nemo(stock)
    bins = build_extractor(stock).feature_size
    # Two utterances of two lengths; otherwise torch treats sizes as constants.
    inputs = {"audio_signal": torch.randn(2, bins, 101), "length": torch.tensor([101, 67])}
    save_graph(NemoCtc(stock, tokens), inputs, [{0: FREE, 2: FREE}, {0: FREE}], ["logprobs"], file)
    factor = stock.config.encoder_config.subsampling_factor
    return {"model_type": "nemo-conformer-ctc", "features_size": bins, "subsampling_factor": factor}


def write_waveform(stock: FoldedModel, tokens: int, file: Path) -> None:
    """Write `model.onnx` of sherpa-onnx's Omnilingual ASR layout, the one that begins with the waveform."""
    samples = {"x": functional.normalize(torch.randn(1, SAMPLE_RATE + 711), dim=1) * 100}
    save_graph(WaveformCtc(stock, tokens), samples, [{1: FREE}], ["log_probs"], file, {"model_type": "foldray"})
