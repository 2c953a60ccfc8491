"""Beam search with the decoder, alone or with CTC, for the hybrid Conformer (`foldray.models.conformer`)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from foldray.evaluation.prefix_search import Beam
from foldray.models.conformer import ConformerForSpeech, check_one_depth

IGNORED = -100

# --- Attention -------------------------------------------------------------------------------------


def attention_decode(
    model: ConformerForSpeech, inputs: dict[str, Tensor], max_length: int, num_beams: int
) -> list[list[int]]:
    """Decode with the decoder alone; greedy with one beam.

    Args:
        inputs: `input_features` (B, T, F) and `attention_mask` (B, T).
        max_length: maximum number of tokens, not counting the end token.

    Returns:
        Token ids of each utterance.

    Raises:
        ValueError: for more tokens than the decoder has positions, and for a folded model that runs several depths.
    """
    if max_length > model.config.max_target_positions:
        raise ValueError(f"max_length {max_length}: the decoder has {model.config.max_target_positions} positions")
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    stock: Any = model
    # The decoder must not emit blank: it would count as padding in the positions after it.
    sequences = stock.generate(
        **inputs, max_new_tokens=max_length + 1, num_beams=num_beams, do_sample=False, suppress_tokens=[pad]
    )
    return [[token for token in tokens if token not in (pad, end)] for tokens in sequences.tolist()]


# --- Both ------------------------------------------------------------------------------------------


@torch.no_grad()
def rescore(
    model: ConformerForSpeech,
    inputs: dict[str, Tensor],
    nbest: Sequence[Sequence[Beam]],
    ctc_weight: float,
    hidden_BTD: Tensor | None = None,
) -> list[list[int]]:
    """Choose the hypothesis of each utterance with the best ctc_weight * CTC + (1 - ctc_weight) * attention score.

    Both scores are log-probabilities of the whole sentence; the attention score includes the end token. This is joint
    CTC/attention decoding by rescoring (Hori et al. 2017, aclanthology.org/P17-1048) of the n-best list of the CTC head
    (arXiv 2012.05481).

    Args:
        inputs: `input_features` (B, T, F) and `attention_mask` (B, T).
        nbest: one or more hypotheses of each utterance, from `ctc_nbest`.
        hidden_BTD: the encoder's output, if it is already computed.

    Returns:
        Token ids of each utterance.

    Raises:
        ValueError: for a folded model that runs several depths.
    """
    hidden_BTD = model.encoder(**inputs).last_hidden_state if hidden_BTD is None else hidden_BTD
    check_one_depth(hidden_BTD, len(nbest))
    mask_BT = inputs.get("attention_mask")
    best = []
    for b, hypotheses in enumerate(nbest):
        tokens_N = [tokens for tokens, _ in hypotheses]
        attention_N = _attention_scores(model, hidden_BTD[b], None if mask_BT is None else mask_BT[b], tokens_N)
        ctc_N = torch.tensor([score for _, score in hypotheses])
        joint_N = ctc_weight * ctc_N + (1 - ctc_weight) * attention_N.cpu()
        best.append(tokens_N[int(joint_N.argmax())])
    return best


def _attention_scores(
    model: ConformerForSpeech, hidden_TD: Tensor, mask_T: Tensor | None, tokens_N: list[list[int]]
) -> Tensor:
    """Log-probabilities (N,) of whole sentences under the decoder, for one utterance."""
    end = model.config.eos_token_id
    count = len(tokens_N)
    rows = [torch.tensor([end, *tokens, end], device=hidden_TD.device) for tokens in tokens_N]
    ids_NU = pad_sequence([row[:-1] for row in rows], batch_first=True, padding_value=model.config.pad_token_id)
    targets_NU = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORED)
    logits_NUV = model(
        decoder_input_ids=ids_NU,
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden_TD.expand(count, -1, -1)),
        attention_mask=None if mask_T is None else mask_T.expand(count, -1),
    ).logits.float()
    return -F.cross_entropy(logits_NUV.mT, targets_NU, ignore_index=IGNORED, reduction="none").sum(1)
