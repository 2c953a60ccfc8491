"""Greedy CTC decoding."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foldray import storage
from foldray.data.audio import BadAudioError
from foldray.data.audio import decode as decode_audio
from foldray.data.stream import extract_features
from foldray.data.text import decode
from foldray.errors import UserError
from foldray.model_folder import load_model
from foldray.models import output_frames, set_depths, stack_of, whole_frames
from foldray.processor import build_extractor, read_vocabulary


def greedy_texts(logits_BTV: Tensor, frames_B: Tensor, vocabulary: list[str]) -> list[str]:
    """Best token of each valid frame, repeats merged, blanks (token 0) dropped."""
    best_BT = logits_BTV.argmax(-1).cpu()
    texts = []
    for best_T, frames in zip(best_BT, frames_B.tolist(), strict=True):
        merged = torch.unique_consecutive(best_T[:frames])
        texts.append(decode(merged.tolist(), vocabulary))
    return texts


def transcribe(model_folder: str, files: Sequence[str], depth: int | None = None) -> list[str]:
    """The texts of audio files of any format and rate, at one depth (the deepest by default).

    Raises UserError naming a file that can't be read or a depth that was not trained.
    """
    model = load_model(model_folder)
    set_depths(model, [stack_of(model).plan.depths[-1] if depth is None else depth])
    vocabulary = read_vocabulary(model_folder)
    extractor = build_extractor(model)
    texts = []
    for file in files:
        waveform_T = whole_frames(model, _decode_file(file))
        with torch.no_grad():
            logits_BTV = model(**extract_features(model, extractor, [waveform_T])).logits
        texts += greedy_texts(logits_BTV, torch.tensor(output_frames(model, [len(waveform_T)])), vocabulary)
    return texts


def _decode_file(file: str) -> npt.NDArray[np.float32]:
    try:
        return decode_audio(storage.read_bytes(file))
    except FileNotFoundError:
        raise UserError(file, "is not there") from None
    except OSError as error:
        raise UserError(file, f"can't be read ({error.strerror or error})") from None
    except BadAudioError as bad:
        raise UserError(file, f"can't be used ({bad.reason}: {bad.detail})") from None
