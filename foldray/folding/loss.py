"""The joint loss of an unfolding cycle (arXiv 2505.21237, section 2): a task loss at every path, KL from the deepest.

Every term is a sum over the micro-batch divided by a count of the whole optimiser step that the
caller knows from the plan. So a step's gradient does not depend on how its utterances are spread
over micro-batches or workers, and normalisation happens in one place: here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class StepCounts:
    """What one optimiser step holds over all workers: labels, output frames (padding excluded) and utterances."""

    labels: int
    frames: int
    utterances: int = 0

    @property
    def targets(self) -> int:
        """What a decoder has to write: the labels and an end token for each utterance."""
        return self.labels + self.utterances


@dataclass(frozen=True)
class JointLoss:
    """`total` (scalar, with gradient) and its parts for each path, detached.

    task_P: CTC or cross-entropy per label; kl_P: per frame (per token behind a decoder).
    """

    total: Tensor
    task_P: Tensor
    kl_P: Tensor


def joint_loss(
    logits_PBTV: Tensor,
    frames_B: Tensor,
    labels_BU: Tensor,
    num_labels_B: Tensor,
    counts: StepCounts,
    *,
    alpha: float | Sequence[float],
    beta: float,
    temperature: float = 1.0,
    direction: Direction = "forward",
    blank: int = 0,
) -> JointLoss:
    """CTC(deepest) + alpha * sum CTC(shallower) + beta * sum KL(deepest, detached || shallower).

    logits_PBTV: (P, B, T, V), shallowest path first. frames_B, num_labels_B: valid lengths.
    labels_BU: (B, U) token ids, padded with anything. alpha: one weight, or one for each shallower path.
    """
    log_probs_PBTV = logits_PBTV.float().log_softmax(-1)
    ctc_P = ctc_per_path(log_probs_PBTV, frames_B, labels_BU, num_labels_B, blank) / counts.labels
    kl_P = distillation_per_path(logits_PBTV.float(), frames_B, temperature, direction) / counts.frames
    return _weigh(ctc_P, kl_P, alpha, beta)


def joint_attention_loss(
    logits_PBUV: Tensor,
    targets_BU: Tensor,
    num_targets_B: Tensor,
    num_targets: int,
    *,
    alpha: float | Sequence[float],
    beta: float,
    temperature: float = 1.0,
    direction: Direction = "forward",
    smoothing: float = 0.0,
) -> JointLoss:
    """The same with a decoder's cross-entropy in place of CTC.

    logits_PBUV: (P, B, U, V) of every token given those before it; targets_BU: (B, U), the end token
    included, padded with anything; num_targets: those of the whole optimiser step; smoothing: label
    smoothing (arXiv 1512.00567, section 7).
    """
    task_P = attention_per_path(logits_PBUV.float(), targets_BU, num_targets_B, smoothing) / num_targets
    kl_P = distillation_per_path(logits_PBUV.float(), num_targets_B, temperature, direction) / num_targets
    return _weigh(task_P, kl_P, alpha, beta)


def _weigh(task_P: Tensor, kl_P: Tensor, alpha: float | Sequence[float], beta: float) -> JointLoss:
    shallower = len(task_P) - 1
    weights = [alpha] * shallower if isinstance(alpha, int | float) else list(alpha)
    if len(weights) != shallower:
        raise ValueError(f"alpha: {len(weights)} weights for {shallower} shallower paths")
    total = (task_P * task_P.new_tensor([*weights, 1.0])).sum() + beta * kl_P.sum()
    return JointLoss(total, task_P.detach(), kl_P.detach())


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


def attention_per_path(logits_PBUV: Tensor, targets_BU: Tensor, num_targets_B: Tensor, smoothing: float) -> Tensor:
    """(P,) cross-entropies summed over the valid tokens of all utterances."""
    paths, _, length, vocabulary = logits_PBUV.shape
    ignored = -100
    valid_BU = _valid(num_targets_B, length)
    targets_PBU = torch.where(valid_BU, targets_BU, ignored).expand(paths, -1, -1)
    losses = F.cross_entropy(
        logits_PBUV.reshape(-1, vocabulary),
        targets_PBU.reshape(-1),
        ignore_index=ignored,
        reduction="none",
        label_smoothing=smoothing,
    )
    return losses.view(paths, -1).sum(1)


def distillation_per_path(
    logits_PBTV: Tensor, frames_B: Tensor, temperature: float, direction: Direction = "forward"
) -> Tensor:
    """(P,) KL(deepest || path) in nats summed over valid frames; exactly zero for the deepest itself.

    The deepest path is the teacher and gets no gradient. `reverse` is KL(path || deepest), which
    forgives what the teacher knows and the student leaves out. Multiplied by temperature squared,
    which keeps the gradient's size when the temperature changes (arXiv 1503.02531, section 2).
    """
    if len(logits_PBTV) == 1:
        return logits_PBTV.new_zeros(1)
    student = (logits_PBTV[:-1] / temperature).log_softmax(-1)
    teacher = (logits_PBTV[-1:].detach() / temperature).log_softmax(-1)
    weights, difference = (teacher, teacher - student) if direction == "forward" else (student, student - teacher)
    kl_PBT = (weights.exp() * difference).sum(-1)
    return _sum_valid(kl_PBT, frames_B) * temperature**2


def matching_per_path(hidden_PBTD: Tensor, frames_B: Tensor) -> Tensor:
    """(P,) squared distance of each path's last hidden states to the deepest's, detached; zero for the deepest.

    States are normalised over their width first, so that the scale of a stack without a last norm
    does not matter; the mean over the width is summed over valid frames.
    """
    normal = F.layer_norm(hidden_PBTD.float(), hidden_PBTD.shape[-1:])
    return _sum_valid((normal[:-1] - normal[-1:].detach()).square().mean(-1), frames_B)


def _sum_valid(values_PBT: Tensor, frames_B: Tensor) -> Tensor:
    """(P + 1,): sums over valid frames of the shallower paths, and the deepest's zero."""
    # where, not a product: a padded frame may hold anything, and 0 * inf is not 0.
    sums_P = torch.where(_valid(frames_B, values_PBT.shape[-1]), values_PBT, 0.0).sum((1, 2))
    return torch.cat([sums_P, sums_P.new_zeros(1)])


def _valid(lengths_B: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths_B.device) < lengths_B[:, None]
