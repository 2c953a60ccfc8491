"""The joint loss against a slow reference, and its indifference to padding and to how a step is cut."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from foldray.folding.loss import (
    StepCounts,
    ctc_per_path,
    distillation_per_path,
    joint_attention_loss,
    joint_loss,
    matching_per_path,
)


def slow_ctc(log_probs_TV: Tensor, labels: list[int]) -> float:
    """-log of the summed probability of every frame labelling that collapses to the labels, by enumeration."""
    frames, vocabulary = log_probs_TV.shape
    total = 0.0
    for labelling in itertools.product(range(vocabulary), repeat=frames):
        merged = [k for k, _ in itertools.groupby(labelling)]
        if [k for k in merged if k != 0] == labels:
            total += math.exp(sum(float(log_probs_TV[t, k]) for t, k in enumerate(labelling)))
    return -math.log(total)


def slow_kl(teacher_TV: Tensor, student_TV: Tensor, temperature: float) -> float:
    total = 0.0
    for teacher_V, student_V in zip(teacher_TV / temperature, student_TV / temperature, strict=True):
        p, q = teacher_V.softmax(-1), student_V.softmax(-1)
        total += sum(float(p[k]) * math.log(float(p[k]) / float(q[k])) for k in range(len(p)))
    return total * temperature**2


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits_PBTV = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return logits_PBTV, torch.tensor([5, 3]), torch.tensor([[1, 2, 2], [3, 0, 0]]), torch.tensor([3, 1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_against_a_slow_reference(temperature: float) -> None:
    logits_PBTV, frames_B, labels_BU, num_labels_B = example()
    counts = StepCounts(labels=7, frames=11)
    loss = joint_loss(
        logits_PBTV, frames_B, labels_BU, num_labels_B, counts, alpha=0.5, beta=0.3, temperature=temperature
    )
    log_probs = logits_PBTV.log_softmax(-1)
    labels = [[1, 2, 2], [3]]
    ctc = [sum(slow_ctc(log_probs[p, b, : frames_B[b]], labels[b]) for b in range(2)) / 7 for p in range(3)]
    kl = [
        sum(slow_kl(logits_PBTV[-1, b, : frames_B[b]], logits_PBTV[p, b, : frames_B[b]], temperature) for b in range(2))
        / 11
        for p in range(3)
    ]
    assert loss.task_P.tolist() == pytest.approx(ctc, rel=1e-5)
    assert loss.kl_P.tolist() == pytest.approx(kl, rel=1e-5, abs=1e-9)
    assert float(loss.total.detach()) == pytest.approx(ctc[2] + 0.5 * (ctc[0] + ctc[1]) + 0.3 * sum(kl), rel=1e-5)


def test_padding_cannot_change_it() -> None:
    logits_PBTV, frames_B, labels_BU, num_labels_B = example()
    counts = StepCounts(4, 8)
    losses, gradients = [], []
    for rubbish in (None, 0.0, 1e4, float("inf")):
        logits = logits_PBTV.clone()
        labels = labels_BU
        if rubbish is not None:
            logits = torch.cat([logits, torch.full((3, 2, 10, 4), rubbish, dtype=logits.dtype)], 2)
            logits[:, 1, 3:] = rubbish
            labels = torch.nn.functional.pad(labels_BU, (0, 4), value=3)
        logits.requires_grad_()
        loss = joint_loss(logits, frames_B, labels, num_labels_B, counts, alpha=0.5, beta=0.3)
        losses.append(float(loss.total.detach()))
        if rubbish != float("inf"):
            loss.total.backward()
            assert logits.grad is not None
            gradients.append([logits.grad[:, 0, :5], logits.grad[:, 1, :3]])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    for gradient in gradients[1:]:
        for ours, first in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(ours, first, rtol=1e-5, atol=1e-7)


def test_micro_batches_add_up_to_the_step() -> None:
    logits_PBTV, frames_B, labels_BU, num_labels_B = example()
    counts = StepCounts(4, 8)
    whole = joint_loss(logits_PBTV, frames_B, labels_BU, num_labels_B, counts, alpha=0.5, beta=0.3)
    parts = [
        joint_loss(logits_PBTV[:, [b]], frames_B[[b]], labels_BU[[b]], num_labels_B[[b]], counts, alpha=0.5, beta=0.3)
        for b in range(2)
    ]  # fmt: skip
    assert float(whole.total) == pytest.approx(sum(float(part.total) for part in parts), rel=1e-6)


def test_the_teacher_learns_nothing_from_its_students() -> None:
    logits_PBTV = example()[0].requires_grad_()
    distillation_per_path(logits_PBTV, torch.tensor([5, 3]), 1.0).sum().backward()
    assert logits_PBTV.grad is not None
    assert not logits_PBTV.grad[-1].any()
    assert logits_PBTV.grad[0].any()


def test_labels_longer_than_their_frames_count_zero() -> None:
    log_probs = example()[0].log_softmax(-1)[:, :1].float()
    labels = torch.tensor([[1, 1, 1, 1]])
    assert ctc_per_path(log_probs, torch.tensor([5]), labels, torch.tensor([4]), 0).tolist() == [0.0] * 3


def test_reverse_kl_against_a_slow_reference() -> None:
    logits_PBTV, frames_B, *_ = example()
    kl_P = distillation_per_path(logits_PBTV, frames_B, 2.0, "reverse")
    slow = [
        sum(slow_kl(logits_PBTV[p, b, : frames_B[b]], logits_PBTV[-1, b, : frames_B[b]], 2.0) for b in range(2))
        for p in range(3)
    ]
    assert kl_P.tolist() == pytest.approx(slow, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_attention_against_a_slow_reference(smoothing: float) -> None:
    logits_PBUV, lengths_B, _, _ = example()
    targets_BU = torch.tensor([[1, 2, 3, 0, 2], [3, 1, 2, 99, 99]])
    loss = joint_attention_loss(logits_PBUV, targets_BU, lengths_B, 8, alpha=[0.5, 0.25], beta=0.3, smoothing=smoothing)
    log_probs = logits_PBUV.log_softmax(-1)
    slow = []
    for p in range(3):
        total = 0.0
        for b in range(2):
            for u in range(int(lengths_B[b])):
                row = log_probs[p, b, u]
                total -= (1 - smoothing) * float(row[targets_BU[b, u]]) + smoothing * float(row.mean())
        slow.append(total / 8)
    assert loss.task_P.tolist() == pytest.approx(slow, rel=1e-5)
    expected = slow[2] + 0.5 * slow[0] + 0.25 * slow[1] + 0.3 * float(loss.kl_P.sum())
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)


def test_matching_pulls_students_to_the_teacher_and_ignores_padding_and_scale() -> None:
    hidden_PBTD = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(3))
    hidden_PBTD[1] = 7 * hidden_PBTD[2] + 1  # the same after normalisation
    hidden_PBTD[:, 1, 3:] = float("nan")
    hidden_PBTD.requires_grad_()
    distance_P = matching_per_path(hidden_PBTD, torch.tensor([5, 3]))
    normal = torch.nn.functional.layer_norm(hidden_PBTD.detach(), (4,))
    by_hand = sum(
        float((normal[0, b, t] - normal[2, b, t]).square().mean()) for b, n in ((0, 5), (1, 3)) for t in range(n)
    )
    assert distance_P.tolist() == pytest.approx([by_hand, 0.0, 0.0], rel=1e-5, abs=1e-4)
    distance_P.sum().backward()
    assert hidden_PBTD.grad is not None
    assert not hidden_PBTD.grad[2, 0].any()
    assert hidden_PBTD.grad[0, 0].any()


def test_weights_must_be_as_many_as_shallower_paths() -> None:
    logits_PBTV, frames_B, labels_BU, num_labels_B = example()
    with pytest.raises(ValueError, match="alpha: 1 weights for 2"):
        joint_loss(logits_PBTV, frames_B, labels_BU, num_labels_B, StepCounts(4, 8), alpha=[0.5], beta=0.3)
