"""The joint loss of an unfolding cycle (arXiv 2505.21237, section 2): CTC at every path, KL from the deepest.

Every term is a sum over the micro-batch divided by a count of the whole optimiser step that the
caller knows from the plan. So a step's gradient does not depend on how its utterances are spread
over micro-batches or workers, and normalisation happens in one place: here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StepCounts:
    """What one optimiser step holds over all workers: its labels and its output frames (padding excluded)."""

    labels: int
    frames: int


@dataclass(frozen=True)
class JointLoss:
    """`total` (scalar, with gradient) and its parts for each path, detached: `ctc_P` per label, `kl_P` per frame."""

    total: Tensor
    ctc_P: Tensor
    kl_P: Tensor


def joint_loss(
    logits_PBTV: Tensor,
    frames_B: Tensor,
    labels_BU: Tensor,
    num_labels_B: Tensor,
    counts: StepCounts,
    *,
    alpha: float,
    beta: float,
    temperature: float = 1.0,
    blank: int = 0,
) -> JointLoss:
    """CTC(deepest) + alpha * sum CTC(shallower) + beta * sum KL(deepest, detached || shallower).

    logits_PBTV: (P, B, T, V), shallowest path first. frames_B, num_labels_B: valid lengths.
    labels_BU: (B, U) token ids, padded with anything.
    """
    log_probs_PBTV = logits_PBTV.float().log_softmax(-1)
    ctc_P = ctc_per_path(log_probs_PBTV, frames_B, labels_BU, num_labels_B, blank) / counts.labels
    kl_P = distillation_per_path(logits_PBTV.float(), frames_B, temperature) / counts.frames
    shallower_ctc = ctc_P[:-1].sum()
    total = ctc_P[-1] + alpha * shallower_ctc + beta * kl_P.sum()
    return JointLoss(total, ctc_P.detach(), kl_P.detach())


def ctc_per_path(
    log_probs_PBTV: Tensor, frames_B: Tensor, labels_BU: Tensor, num_labels_B: Tensor, blank: int
) -> Tensor:
    """(P,) negative log-likelihoods summed over the utterances. Labels longer than their frames count zero."""
    paths, batch, frames, vocabulary = log_probs_PBTV.shape
    # (P*B, T, V) -> (T, P*B, V): all paths in one call of the library's CTC.
    log_probs_TNV = log_probs_PBTV.reshape(paths * batch, frames, vocabulary).transpose(0, 1)
    nll_N = F.ctc_loss(
        log_probs_TNV,
        labels_BU.repeat(paths, 1),
        frames_B.repeat(paths),
        num_labels_B.repeat(paths),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return nll_N.view(paths, batch).sum(1)


def distillation_per_path(logits_PBTV: Tensor, frames_B: Tensor, temperature: float) -> Tensor:
    """(P,) KL(deepest || path) in nats summed over valid frames; exactly zero for the deepest itself.

    The deepest path is the teacher and gets no gradient. Multiplied by temperature squared, which
    keeps the gradient's size when the temperature changes (arXiv 1503.02531, section 2).
    """
    paths, _, frames, _ = logits_PBTV.shape
    if paths == 1:
        return logits_PBTV.new_zeros(1)
    student = (logits_PBTV[:-1] / temperature).log_softmax(-1)
    teacher = (logits_PBTV[-1:].detach() / temperature).log_softmax(-1)
    kl_PBT = (teacher.exp() * (teacher - student)).sum(-1)
    valid_BT = torch.arange(frames, device=frames_B.device) < frames_B[:, None]
    # where, not a product: a padded frame may hold anything, and 0 * inf is not 0.
    kl_P = torch.where(valid_BT, kl_PBT, 0.0).sum((1, 2)) * temperature**2
    return torch.cat([kl_P, kl_P.new_zeros(1)])
