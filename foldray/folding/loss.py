"""The loss of a joint step (arXiv 2505.21237, section 2): a task loss at every depth, and KL from the deepest.

Every term is a sum over the micro-batch divided by a count over the whole optimiser step, which the
caller knows from the epoch plan. So a step's gradient does not depend on how its utterances are distributed
over micro-batches or workers. Suffixes are shapes: P depths (paths), B utterances, T frames, U tokens, V vocabulary.
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
    """Counts of one optimiser step over all workers: labels, output frames without padding, utterances."""

    labels: int
    frames: int
    utterances: int = 0

    @property
    def targets(self) -> int:
        """Target tokens of a decoder: the labels and an end token for each utterance."""
        return self.labels + self.utterances


@dataclass(frozen=True)
class JointLoss:
    """The joint loss and its parts.

    Attributes:
        total: Scalar, with gradient.
        task_P: CTC or cross-entropy per label at each depth, detached.
        kl_P: KL per frame (per token of a decoder) at each depth, detached.
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
    """Compute CTC(deepest) + alpha * sum CTC(shallower) + beta * sum KL(deepest, detached || shallower).

    Args:
        logits_PBTV: Logits (P, B, T, V), shallowest depth first.
        frames_B: Valid frames of each utterance.
        labels_BU: Token ids (B, U); padding is ignored.
        num_labels_B: Valid labels of each utterance.
        counts: Counts of the whole optimiser step.
        alpha: Weight of the shallower depths, or one weight for each of them.
        beta: Weight of the KL.
        temperature: Temperature of both distributions of the KL.
        direction: "forward" is KL(deepest || shallower), "reverse" the other way round.
        blank: Token id of the CTC blank.

    Example:
        >>> logits_PBTV = model(**inputs).logits.unflatten(0, (2, -1))  # two depths
        >>> counts = StepCounts(labels=int(num_labels_B.sum()), frames=int(frames_B.sum()))
        >>> loss = joint_loss(logits_PBTV, frames_B, labels_BU, num_labels_B, counts, alpha=1.0, beta=1.0)
        >>> loss.total.backward()
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
    """Compute the joint loss with a decoder's cross-entropy instead of CTC.

    Args:
        logits_PBUV: Logits (P, B, U, V) of every token given those before it.
        targets_BU: Target tokens (B, U) with the end token; padding is ignored.
        num_targets_B: Valid targets of each utterance.
        num_targets: Targets of the whole optimiser step.
        alpha, beta, temperature, direction: As in `joint_loss`.
        smoothing: Label smoothing (arXiv 1512.00567, section 7).
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
    """Compute negative log-likelihoods (P,), summed over utterances; labels longer than their frames count zero."""
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
    """Compute cross-entropies (P,), summed over the valid tokens of all utterances."""
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
    """Compute KL(deepest || path) (P,) in nats, summed over valid frames; exactly zero for the deepest.

    The deepest path is the teacher and gets no gradient. "reverse" is KL(path || deepest), which does
    not penalise a student for missing modes of the teacher. The result is multiplied by temperature
    squared, which keeps the gradient's scale (arXiv 1503.02531, section 2).
    """
    if len(logits_PBTV) == 1:
        return logits_PBTV.new_zeros(1)
    student = (logits_PBTV[:-1] / temperature).log_softmax(-1)
    teacher = (logits_PBTV[-1:].detach() / temperature).log_softmax(-1)
    weights, difference = (teacher, teacher - student) if direction == "forward" else (student, student - teacher)
    kl_PBT = (weights.exp() * difference).sum(-1)
    return _sum_valid(kl_PBT, frames_B) * temperature**2


def taught_per_path(logits_PBTV: Tensor, teacher_BTV: Tensor, frames_B: Tensor, temperature: float) -> Tensor:
    """Compute KL(teacher || path) (P,) of a frozen teacher, summed over valid frames, times temperature squared."""
    student = (logits_PBTV / temperature).log_softmax(-1)
    teacher = (teacher_BTV.detach() / temperature).log_softmax(-1)
    kl_PBT = (teacher.exp() * (teacher - student)).sum(-1)
    # where, not a product: a padded frame may hold anything, and 0 * inf is not 0.
    return torch.where(_valid(frames_B, kl_PBT.shape[-1]), kl_PBT, 0.0).sum((1, 2)) * temperature**2


def matching_per_path(hidden_PBTD: Tensor, frames_B: Tensor) -> Tensor:
    """Compute the squared distance (P,) of each path's last hidden states to the detached deepest ones.

    States (P, B, T, D) are first normalised over D, so that the scale of a stack without a final norm
    does not matter; the mean over D is summed over valid frames. The deepest path's distance is zero.
    """
    normal = F.layer_norm(hidden_PBTD.float(), hidden_PBTD.shape[-1:])
    return _sum_valid((normal[:-1] - normal[-1:].detach()).square().mean(-1), frames_B)


def _sum_valid(values_PBT: Tensor, frames_B: Tensor) -> Tensor:
    """Sums (P + 1,) over valid frames of the shallower paths, and zero for the deepest."""
    # where, not a product: a padded frame may hold anything, and 0 * inf is not 0.
    sums_P = torch.where(_valid(frames_B, values_PBT.shape[-1]), values_PBT, 0.0).sum((1, 2))
    return torch.cat([sums_P, sums_P.new_zeros(1)])


def _valid(lengths_B: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=lengths_B.device) < lengths_B[:, None]
