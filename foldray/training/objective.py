"""The objective of a step: which depths run, and the weighted terms of the joint loss."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foldray.config.spec import RunSpec
from foldray.data.stream import Batch
from foldray.folding.loss import (
    JointLoss,
    StepCounts,
    joint_attention_loss,
    joint_loss,
    matching_per_path,
    taught_per_path,
)
from foldray.folding.plan import FoldPlan
from foldray.models.families import family_of
from foldray.models.fold import ctc_logits, decoder_stack_of, stack_of
from foldray.training.teacher import Teacher


def _may_skip(plan: FoldPlan) -> bool:
    """Whether private parts of a stack are used at some depths that a step may leave out."""
    parts = bool(dataclasses.replace(plan.private, statistics=False))  # those are no parameters
    return parts and plan.uses() != plan.uses(plan.depths[-1:])


class Objective:
    """The joint loss of a spec for one folded model.

    Attributes:
        parts: Names of the losses that are logged for each depth.
        may_skip_parts: Whether a step may leave private parts without gradients, because only depths that were not
            drawn use them.
    """

    def __init__(self, spec: RunSpec, model: nn.Module, teacher: Teacher | None = None) -> None:
        self._teacher = teacher
        self._seed, self._loss = spec.seed, spec.loss
        self._family = family_of(model)
        self._stack = stack_of(model)
        self._stack.keep_output = spec.loss.hidden > 0
        plan = self._stack.plan
        self._depths = plan.depths
        self.parts = [
            *(["ctc"] if self._family.ctc else []),
            *(["attention"] if self._family.attention else []),
            "kl",
            *(["teacher"] if teacher else []),
            *(["hidden"] if spec.loss.hidden else []),
        ]
        drawn = spec.loss.sampled is not None
        decoder = decoder_stack_of(model)
        plans = [plan, *([decoder.plan] if decoder is not None else [])]
        self.may_skip_parts = drawn and any(map(_may_skip, plans))

    def draw_depths(self, epoch: int, epoch_step: int) -> tuple[int, ...]:
        """Return the shallowest and deepest depth and random ones between (sandwich rule, arXiv 1903.05134).

        The same on every rank, since the random seed is that of the step.
        """
        between = self._depths[1:-1]
        if self._loss.sampled is None or self._loss.sampled >= len(between):
            return self._depths
        rng = np.random.default_rng([self._seed, epoch, epoch_step])
        drawn = rng.choice(between, self._loss.sampled, replace=False).tolist()
        return (self._depths[0], *sorted(drawn), *self._depths[-1:])

    def __call__(self, output: Any, batch: Batch, counts: StepCounts, progress: float) -> tuple[Tensor, Tensor]:
        """Return the loss to backpropagate, and its parts for each depth that ran, detached, (L, P).

        Args:
            output: The model's output, with depths stacked along the batch.
            batch: The micro-batch.
            counts: Labels, frames and utterances of the whole step, by which sums are divided.
            progress: Share of the run that is done, for the warm-up of `loss.beta`.
        """
        ran = len(self._stack.run_depths)
        ramp = min(1.0, progress / self._loss.beta_warmup) if self._loss.beta_warmup else 1.0
        terms: dict[str, JointLoss] = {}
        if self._family.ctc:
            terms["ctc"] = self._ctc(ctc_logits(output).unflatten(0, (ran, -1)), batch, counts, ramp)
        if self._family.attention:
            terms["attention"] = self._attention(output.logits.unflatten(0, (ran, -1)), batch, counts, ramp)
        share = {"ctc": self._loss.ctc, "attention": 1 - self._loss.ctc} if len(terms) == 2 else {}
        total = torch.stack([share.get(name, 1.0) * term.total for name, term in terms.items()]).sum()
        kl_P = torch.stack([share.get(name, 1.0) * term.kl_P for name, term in terms.items()]).sum(0)
        parts = [*(term.task_P for term in terms.values()), kl_P]
        if self._teacher:
            taught_P = self._taught(output, batch, counts)
            total = total + self._loss.gamma * taught_P.sum()
            parts.append(taught_P.detach())
        if self._loss.hidden:
            hidden_P = self._matching(batch, counts)
            total = total + ramp * self._loss.hidden * hidden_P.sum()
            parts.append(hidden_P.detach())
        return total, torch.stack(parts)

    def _weights(self, ramp: float) -> dict[str, Any]:
        shallower = len(self._stack.run_depths) - 1
        between = self._loss.alpha if self._loss.alpha_between is None else self._loss.alpha_between
        return {
            "alpha": [self._loss.alpha, *[between] * (shallower - 1)] if shallower else [],
            "beta": ramp * self._loss.beta,
            "temperature": self._loss.temperature,
            "direction": self._loss.direction,
        }

    def _ctc(self, logits_PBTV: Tensor, batch: Batch, counts: StepCounts, ramp: float) -> JointLoss:
        labels = (batch.frames_B, batch.labels_BU, batch.num_labels_B)
        return joint_loss(logits_PBTV, *labels, counts, **self._weights(ramp))

    def _attention(self, logits_PBUV: Tensor, batch: Batch, counts: StepCounts, ramp: float) -> JointLoss:
        assert batch.targets_BU is not None
        logits_PBUV = logits_PBUV[:, :, -batch.targets_BU.shape[1] :]  # those of the prompt are not learned
        smoothing = self._loss.label_smoothing
        targets = (batch.targets_BU, batch.num_labels_B + 1, counts.targets)
        return joint_attention_loss(logits_PBUV, *targets, smoothing=smoothing, **self._weights(ramp))

    def _taught(self, output: Any, batch: Batch, counts: StepCounts) -> Tensor:
        assert self._teacher is not None
        ran, seq2seq = len(self._stack.run_depths), self._family.seq2seq
        logits_PBTV = (output.logits if seq2seq else ctc_logits(output)).unflatten(0, (ran, -1)).float()
        teacher_BTV = self._teacher(batch).float()
        if not seq2seq:
            return taught_per_path(logits_PBTV, teacher_BTV, batch.frames_B, self._loss.temperature) / counts.frames
        assert batch.targets_BU is not None
        last = batch.targets_BU.shape[1]
        pair = (logits_PBTV[:, :, -last:], teacher_BTV[:, -last:])
        return taught_per_path(*pair, batch.num_labels_B + 1, self._loss.temperature) / counts.targets

    def _matching(self, batch: Batch, counts: StepCounts) -> Tensor:
        hidden_PBTD = self._stack.take_output().unflatten(0, (len(self._stack.run_depths), -1))
        # SEW's blocks run on squeezed frames, fewer than the model's output has.
        squeezed = min(1.0, hidden_PBTD.shape[2] / int(batch.frames_B.max()))
        return matching_per_path(hidden_PBTD, (batch.frames_B * squeezed).long()) / counts.frames
