"""Wav2Vec2-BERT: Conformer blocks on log-mel windows, several of which are stacked into one frame."""

from typing import TYPE_CHECKING

from foldray.models.families._family import Family
from foldray.models.families._mel import HOP, MEL_BINS, WINDOW, kaldi_windows
from foldray.models.folded_model import FoldedModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


def _stacked(config: "PreTrainedConfig") -> int:
    return int(config.feature_projection_input_dim) // MEL_BINS


def _frames(model: FoldedModel, samples: "Tensor") -> "Tensor":
    return kaldi_windows(samples) // _stacked(model.config)


def _input_shape(model: FoldedModel, samples: int) -> tuple[int, ...]:
    return (1, kaldi_windows(samples) // _stacked(model.config), model.config.feature_projection_input_dim)


def _whole_samples(model: FoldedModel, samples: int) -> int:
    # An unfinished group of windows is cut from the batch's longest utterance only; padding would change the others.
    stacked = _stacked(model.config)
    windows: int = kaldi_windows(samples) // stacked * stacked
    return WINDOW + HOP * (windows - 1)


def _options(config: "PreTrainedConfig") -> dict[str, object]:
    return {"num_mel_bins": MEL_BINS, "feature_size": MEL_BINS, "stride": _stacked(config)}


def _refusal(config: "PreTrainedConfig") -> str | None:
    return "can't be folded with add_adapter: the adapter masks single utterances" if config.add_adapter else None


FAMILY = Family(
    name="wav2vec2-bert",
    model="Wav2Vec2BertForCTC",
    config="Wav2Vec2BertConfig",
    extractor="SeamlessM4TFeatureExtractor",
    encoder="wav2vec2_bert.encoder",
    frames=_frames,
    input_shape=_input_shape,
    extractor_options=_options,
    whole_samples=_whole_samples,
    mel_bins=lambda config: MEL_BINS,
    refusal=_refusal,
    inputs="input_features",
    front=("wav2vec2_bert.feature_projection.",),
)
