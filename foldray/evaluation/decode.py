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
from foldray.data.text import Units
from foldray.errors import UserError
from foldray.model_folder import load_model
from foldray.models import output_frames, set_depths, stack_of, whole_frames
from foldray.processor import build_extractor, read_units


def greedy_texts(logits_BTV: Tensor, frames_B: Tensor, units: Units) -> list[str]:
    """Best token of each valid frame, repeats merged, blanks (token 0) dropped."""
    best_BT = logits_BTV.argmax(-1).cpu()
    texts = []
    for best_T, frames in zip(best_BT, frames_B.tolist(), strict=True):
        merged = torch.unique_consecutive(best_T[:frames])
        texts.append(units.decode(merged.tolist()))
    return texts


def transcribe(model_folder: str, files: Sequence[str], depth: int | None = None) -> list[dict[str, str]]:
    """`file` and `text` of audio files of any format and rate, at one depth (the deepest by default).

    A file that can't be used gets `error` instead of `text`. Raises UserError for a depth that was
    not trained.
    """
    model = load_model(model_folder)
    set_depths(model, [stack_of(model).plan.depths[-1] if depth is None else depth])
    units = read_units(model_folder)
    extractor = build_extractor(model)
    entries = []
    for file in files:
        try:
            waveform_T = whole_frames(model, _decode_file(file))
        except UserError as error:
            entries.append({"file": file, "error": error.problem})
            continue
        with torch.no_grad():
            logits_BTV = model(**extract_features(model, extractor, [waveform_T])).logits
        frames_B = torch.tensor(output_frames(model, [len(waveform_T)]))
        entries.append({"file": file, "text": greedy_texts(logits_BTV, frames_B, units)[0]})
    return entries


def _decode_file(file: str) -> npt.NDArray[np.float32]:
    try:
        return decode_audio(storage.read_bytes(file))
    except FileNotFoundError:
        raise UserError(file, "is not there") from None
    except OSError as error:
        raise UserError(file, f"can't be read ({error.strerror or error})") from None
    except BadAudioError as bad:
        raise UserError(file, f"can't be used ({bad.reason}: {bad.detail})") from None
