"""Decoding: from the outputs of a model to text."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foldray import storage
from foldray.data.audio import BadAudioError
from foldray.data.audio import decode as decode_audio
from foldray.errors import UserError
from foldray.evaluation.beam_search import attention_decode, ctc_nbest, rescore
from foldray.models.conformer import ConformerForSpeech
from foldray.models.families import family_of
from foldray.models.features import build_extractor, extract_features, output_frames, whole_frames
from foldray.models.fold import ctc_logits, set_depths, stack_of
from foldray.models.folded_model import FoldedModel
from foldray.models.processor import read_tokenizer
from foldray.models.save_load import load_model
from foldray.models.tokenizer import Tokenizer

Decoding = Literal["ctc", "attention", "joint"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
BEAM = 10
"""Beam size."""
CTC_WEIGHT = 0.3
"""Weight of CTC in the joint score."""


def parse_decoding(name: str) -> Decoding:
    """Return the decoding that `--decoding` names. Raises UserError for an unknown one."""
    for known in DECODINGS:
        if known == name:
            return known
    raise UserError("--decoding", f"must be one of {', '.join(DECODINGS)} (got '{name}')")


def greedy_texts(logits_BTV: Tensor, frames_B: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Decode greedily: the best token of each valid frame, repeats merged, blanks (token 0) removed."""
    best_BT = logits_BTV.argmax(-1).cpu()
    texts = []
    for best_T, frames in zip(best_BT, frames_B.tolist(), strict=True):
        merged = torch.unique_consecutive(best_T[:frames])
        texts.append(tokenizer.decode(merged.tolist()))
    return texts


def check_decoding(model: nn.Module, decoding: Decoding) -> None:
    """Raise UserError if a model lacks the head that a way of decoding needs."""
    family = family_of(model)
    if not family.ctc:
        raise UserError(type(model).__name__, "is scored by its own generate(); foldray decodes CTC and hybrid models")
    if decoding != "ctc" and not family.attention:
        raise UserError("--decoding", f"{decoding} needs a decoder, which {type(model).__name__} lacks; use ctc")


@torch.no_grad()
def recognise(
    model: FoldedModel, inputs: dict[str, Tensor], frames_B: Tensor, tokenizer: Tokenizer, decoding: Decoding = "ctc"
) -> list[str]:
    """Decode a batch at the one depth that the model is set to.

    Args:
        model: a folded model.
        inputs: what the encoder takes, B utterances.
        frames_B: valid output frames of each utterance.
        decoding: `ctc` is greedy; `attention` is a beam search with the decoder; `joint` lets the decoder choose among
            the best hypotheses of CTC, with the weights of the training in arXiv 2505.21237.

    Returns:
        The text of each utterance.
    """
    hybrid = cast(ConformerForSpeech, model)  # the only family with a decoder and CTC, see check_decoding
    if decoding == "attention":
        longest = min(int(frames_B.max()), model.config.max_target_positions - 2)
        return [tokenizer.decode(ids) for ids in attention_decode(hybrid, inputs, longest, BEAM)]
    output = model(**inputs)
    logits_BTV = ctc_logits(output)
    if decoding == "ctc":
        return greedy_texts(logits_BTV, frames_B, tokenizer)
    log_probs_BTV = logits_BTV.float().log_softmax(-1).cpu()
    nbest = [ctc_nbest(log_probs_BTV[b, :frames], BEAM) for b, frames in enumerate(frames_B.tolist())]
    hidden = output.encoder_last_hidden_state
    return [tokenizer.decode(ids) for ids in rescore(hybrid, inputs, nbest, CTC_WEIGHT, hidden)]


def transcribe(
    model_folder: str, files: Sequence[str], depth: int | None = None, decoding: Decoding = "ctc"
) -> list[dict[str, str]]:
    """Transcribe audio files of any format and sample rate.

    Args:
        model_folder: folder or URI of a foldable model.
        files: paths or URIs.
        depth: the depth to run; the deepest by default.

    Returns:
        For each file a dict with `file` and `text`, or `error` instead of `text` if it can't be used.

    Raises:
        UserError: for a depth without a path, or a way of decoding that the model lacks.
    """
    model = load_model(model_folder)
    check_decoding(model, decoding)
    set_depths(model, [stack_of(model).plan.depths[-1] if depth is None else depth])
    tokenizer = read_tokenizer(model_folder)
    extractor = build_extractor(model)
    entries = []
    for file in files:
        try:
            waveform_T = whole_frames(model, _decode_file(file))
        except UserError as error:
            entries.append({"file": file, "error": error.problem})
            continue
        inputs = extract_features(model, extractor, [waveform_T])
        frames_B = torch.tensor(output_frames(model, [len(waveform_T)]))
        entries.append({"file": file, "text": recognise(model, inputs, frames_B, tokenizer, decoding)[0]})
    return entries


def _decode_file(file: str) -> npt.NDArray[np.float32]:
    try:
        return decode_audio(storage.read_bytes(file))
    except FileNotFoundError:
        raise UserError(file, "does not exist") from None
    except OSError as error:
        raise UserError(file, f"can't be read ({error.strerror or error})") from None
    except BadAudioError as bad:
        raise UserError(file, f"can't be used ({bad.reason}: {bad.detail})") from None
