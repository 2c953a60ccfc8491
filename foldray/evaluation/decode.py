"""Decoding: from the outputs of a model to text."""

from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from foldray.errors import UserError
from foldray.evaluation.beam_options import BeamOptions
from foldray.evaluation.beam_search import attention_decode, rescore
from foldray.evaluation.generate import generate_texts
from foldray.evaluation.prefix_search import ctc_nbest
from foldray.evaluation.word_scores import WordSearch, word_search
from foldray.models.conformer import ConformerForSpeech
from foldray.models.families import family_of
from foldray.models.fold import ctc_logits
from foldray.models.folded_model import FoldedModel
from foldray.models.tokenizer import Tokenizer

Decoding = Literal["ctc", "attention", "joint", "beam"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
BEAM = 10
"""Beam size of the decoder."""
CTC_WEIGHT = 0.3
"""Weight of CTC in the joint score."""


LONGEST = 30.0
UNENDED = "the decoder reached its limit of tokens: text may be missing, or words repeated"


def parse_decoding(name: str | None, beam: BeamOptions | None = None) -> Decoding | None:
    """Return the decoding that `--decoding` names, None for the usual one; options of the beam search imply `beam`.

    Raises:
        UserError: The name is unknown, or the options are of no effect with it.
    """
    if name is None:
        return "beam" if beam else None
    if name not in DECODINGS:
        raise UserError("--decoding", f"must be one of {', '.join(DECODINGS)} (got '{name}')")
    if beam and name != "beam":
        raise UserError("--decoding", f"{name} takes no n-gram, hotwords, words or beam; use --decoding beam")
    return name


def greedy_texts(logits_BTV: Tensor, frames_B: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Decode greedily: the best token of each valid frame, repeats merged, blanks (token 0) removed."""
    best_BT = logits_BTV.argmax(-1).cpu()
    texts = []
    for best_T, frames in zip(best_BT, frames_B.tolist(), strict=True):
        merged = torch.unique_consecutive(best_T[:frames])
        texts.append(tokenizer.decode(merged.tolist()))
    return texts


def usual_decoding(model: nn.Module) -> Decoding:
    """The way that a model is decoded unless another is asked for: CTC if it has it, else its decoder."""
    return "ctc" if family_of(model).ctc else "attention"


def search_or(decoding: Decoding, beam: BeamOptions | None, tokenizer: Tokenizer) -> "Decoding | WordSearch":
    """The beam search that `beam` stands for, with its files read; any other decoding as it is. Raises UserError."""
    return word_search(beam or BeamOptions(), tokenizer) if decoding == "beam" else decoding


def check_decoding(model: nn.Module, decoding: Decoding) -> None:
    """Raise UserError if a model lacks the head that a way of decoding needs."""
    family = family_of(model)
    if family.seq2seq and decoding != "attention":
        raise UserError("--decoding", f"{decoding} needs CTC, which {type(model).__name__} lacks; use attention")
    if decoding in ("attention", "joint") and not family.attention:
        raise UserError("--decoding", f"{decoding} needs a decoder, which {type(model).__name__} lacks; use ctc")


@torch.no_grad()
def recognise(
    model: FoldedModel,
    inputs: dict[str, Tensor],
    frames_B: Tensor,
    tokenizer: Tokenizer,
    decoding: Decoding | WordSearch = "ctc",
    languages: Sequence[str] = (),
    seconds: float = LONGEST,
) -> list[str]:
    """Decode a batch at the one depth that the model is set to.

    Args:
        model: a folded model.
        inputs: what the encoder takes, B utterances.
        frames_B: valid output frames of each utterance.
        decoding: `ctc` is greedy; `attention` is a beam search with the decoder; `joint` lets the decoder choose among
            the best hypotheses of CTC, with the weights of the training in arXiv 2505.21237; `beam` is a beam search
            over CTC, and a WordSearch one with an n-gram or lists of words. A stock decoder without CTC generates
            greedily.
        languages: languages of the utterances, for the prompts of a stock decoder.
        seconds: length of the longest utterance, which bounds what a stock decoder generates.

    Returns:
        The text of each utterance.
    """
    if tokenizer.special:
        return generate_texts(model, inputs, tokenizer, seconds, languages)
    hybrid = cast(ConformerForSpeech, model)  # the only family with a decoder and CTC, see check_decoding
    if decoding == "attention":
        longest = min(int(frames_B.max()), model.config.max_target_positions - 2)
        return [tokenizer.decode(ids) for ids in attention_decode(hybrid, inputs, longest, BEAM)]
    output = model(**inputs)
    logits_BTV = ctc_logits(output)
    if decoding == "ctc":
        return greedy_texts(logits_BTV, frames_B, tokenizer)
    log_probs_BTV = logits_BTV.float().log_softmax(-1).cpu()
    if decoding == "beam":
        decoding = word_search(BeamOptions(), tokenizer)
    if isinstance(decoding, WordSearch):
        pairs = zip(log_probs_BTV, frames_B.tolist(), strict=True)
        return [decoding.nbest(log_probs_TV[:frames])[0][0] for log_probs_TV, frames in pairs]
    nbest = [ctc_nbest(log_probs_BTV[b, :frames], BEAM) for b, frames in enumerate(frames_B.tolist())]
    hidden = output.encoder_last_hidden_state
    return [tokenizer.decode(ids) for ids in rescore(hybrid, inputs, nbest, CTC_WEIGHT, hidden)]
