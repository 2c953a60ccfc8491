"""Encoders that take audio of one length only (Whisper's 30 s), run on windows as long as the audio.

The stock encoder compares its input with `max_source_positions` and adds all position vectors. A folded one takes
the length of each batch before it runs: it uses the first positions, and all of them stay stored. At the full length
nothing differs. Attention still sees the silence behind shorter utterances of a batch, as it does in 30 s.
"""

import copy
from typing import TYPE_CHECKING, Any

from foldray.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

AUDIO_WINDOW = "foldray_window"
"""Field of a model's configuration: "audio" if windows are as long as the longest utterance of a batch."""


USUAL_SECONDS = "foldray_seconds"
"""Field of a model's configuration: the length in seconds that 95 % of its training utterances stay below."""


def usual_seconds(config: "PreTrainedConfig") -> float | None:
    """The length that a model was trained on, in seconds; None if it is not known.

    Models that were trained on short utterances lose words of longer ones: a Whisper that was fine-tuned on AN4 (3 s)
    has 4 % WER on chunks of 6 s and 85 % on chunks of 20 s (docs/TRANSCRIBING.md).
    """
    value = getattr(config, USUAL_SECONDS, None)
    return float(value) if isinstance(value, int | float) and 0 < value < 3600 else None


def takes_audio_window(config: "PreTrainedConfig") -> bool:
    """Whether a model runs on windows as long as the audio; else on those of its stock encoder."""
    return bool(getattr(config, AUDIO_WINDOW, None) == "audio")


def fit_positions(encoder: "nn.Module") -> None:
    """Let an encoder of a fixed length run on shorter windows."""
    stock: Any = encoder
    stock.config = copy.copy(stock.config)  # its length is changed for each batch, and others read the model's own
    encoder.register_forward_pre_hook(_shorten, with_kwargs=True)
    encoder.register_forward_hook(_restore, always_call=True)


def _shorten(encoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
    features = kwargs.get("input_features")
    features = args[0] if features is None and args else features
    if features is None:
        return
    length, stride = features.shape[-1], encoder.conv1.stride[0] * encoder.conv2.stride[0]
    if length > encoder.max_source_positions * stride or length % stride:
        most = encoder.max_source_positions * stride
        raise UserError("audio", f"has {length} log-mel windows; the model takes a multiple of {stride} up to {most}")
    encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = length // stride


def _restore(encoder: Any, _args: Any, _output: Any) -> None:
    encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = encoder.max_source_positions


def unfit_positions(encoder: "nn.Module", config: "PreTrainedConfig") -> None:
    """Undo `fit_positions`; the encoder shares the model's configuration again."""
    stock: Any = encoder
    stock.config = config
    for hooks in (encoder._forward_pre_hooks, encoder._forward_hooks):
        for key, hook in list(hooks.items()):
            if hook in (_shorten, _restore):
                del hooks[key]
                for also in (encoder._forward_pre_hooks_with_kwargs, encoder._forward_hooks_always_called):
                    also.pop(key, None)
