"""Beam search with the CTC head, the decoder, or both, for the hybrid Conformer (`foldray.models.conformer`)."""

import heapq
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from foldray.models.conformer import ConformerForSpeech, check_one_depth

Beam = tuple[list[int], float]
"""Token ids without blanks, and their log-probability."""

IGNORED = -100

# --- CTC -------------------------------------------------------------------------------------------

Prefixes = dict[tuple[int, ...], tuple[float, float]]
"""Log-probabilities of each prefix: of the alignments that end in blank, and of those that end in its last token."""


def ctc_nbest(log_probs_TV: Tensor, beam: int, blank: int = 0) -> list[Beam]:
    """Prefix beam search of one utterance (arXiv 1408.2873, algorithm 1, without a language model).

    Args:
        log_probs_TV: (T, V), natural logarithms, valid frames only.
        beam: how many prefixes to keep.
        blank: id of the blank token.

    Returns:
        The most probable token sequences, best first, with log P(tokens | audio); fewer than `beam` if fewer are
        possible. A score sums all alignments that stayed in the beam, so it is exact if the beam was never full.
    """
    # Only the best `beam` extensions of a prefix can stay; blank and a repeated token do not extend it.
    top_TK = log_probs_TV.topk(min(beam + 2, log_probs_TV.shape[1])).indices.tolist()
    prefixes: Prefixes = {(): (0.0, -math.inf)}
    for frame_V, top_K in zip(log_probs_TV.double().tolist(), top_TK, strict=True):
        kept = _keep(prefixes, frame_V, blank)
        floor = min(_log_add(*scores) for scores in kept.values()) if len(kept) == beam else -math.inf
        candidates = kept | _extend(prefixes, frame_V, [token for token in top_K if token != blank], floor)
        prefixes = dict(heapq.nlargest(beam, candidates.items(), key=lambda entry: _log_add(*entry[1])))
    scored = [(list(prefix), _log_add(*scores)) for prefix, scores in prefixes.items()]
    return [(tokens, score) for tokens, score in scored if score > -math.inf]


def _keep(prefixes: Prefixes, frame_V: list[float], blank: int) -> Prefixes:
    """The same prefixes after one more frame: by blank, their last token repeated, or a shorter prefix extended."""
    kept: Prefixes = {}
    for prefix, (in_blank, in_token) in prefixes.items():
        token = -math.inf
        if prefix:
            arriving = _before(prefixes, prefix[:-1], prefix[-1]) if prefix[:-1] in prefixes else -math.inf
            token = _log_add(in_token, arriving) + frame_V[prefix[-1]]
        kept[prefix] = (_log_add(in_blank, in_token) + frame_V[blank], token)
    return kept


def _extend(prefixes: Prefixes, frame_V: list[float], tokens: list[int], floor: float) -> Prefixes:
    """New prefixes that score above `floor`, extended by one of `tokens` (most probable first)."""
    longer: Prefixes = {}
    for prefix, scores in prefixes.items():
        ended = _log_add(*scores)
        for token in tokens:
            if ended + frame_V[token] <= floor:
                break
            score = _before(prefixes, prefix, token) + frame_V[token]
            if score > floor and (*prefix, token) not in prefixes:
                longer[*prefix, token] = (-math.inf, score)
    return longer


def _before(prefixes: Prefixes, prefix: tuple[int, ...], token: int) -> float:
    """Log-probability of the alignments of a prefix that `token` can extend: equal tokens need a blank in between."""
    in_blank, in_token = prefixes[prefix]
    return in_blank if prefix[-1:] == (token,) else _log_add(in_blank, in_token)


def _log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)); numpy's version is several times slower for scalars."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


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
