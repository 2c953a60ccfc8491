"""How the weights move, what is scored on the way, and on how much machine."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from foldray.config.section import Section


class OptimSpec(Section):
    """AdamW or Muon: linear warm-up, a hold, a decay; rates and decay by part of the model; averaged weights."""

    kind: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw, or muon: the matrices of the blocks by Muon, everything else by AdamW; for models from "
        "scratch.",
    )
    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    epochs: int | None = Field(None, ge=1, description="Length of the run in epochs; give either epochs or steps.")
    steps: int | None = Field(None, ge=1, description="Length of the run in optimiser steps.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    hold: float = Field(0.0, ge=0, lt=1, description="Share of the steps at the peak rate, after the warm-up.")
    schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = Field(
        "cosine", description="How the rate falls after warm-up and hold; inverse_sqrt is that of the Transformer."
    )
    final_lr: float = Field(0.01, ge=0, le=1, description="Least rate of the decay, as a share of the peak.")
    lr_front: float = Field(1.0, ge=0, description="Rate of what lies before the blocks, as a share of lr.")
    lr_seed: float = Field(1.0, ge=0, description="Rate of the stored blocks, as a share of lr.")
    lr_private: float = Field(1.0, ge=0, description="Rate of the private parts, as a share of lr.")
    lr_matrices: float = Field(3.0, gt=0, description="Rate of the matrices that Muon moves, as a share of lr_seed.")
    freeze_front: bool = Field(
        False,
        description="The front end (the convolutions before the blocks) keeps its weights; for pretrained models.",
    )
    weight_decay: float = Field(0.01, ge=0, description="Decay of matrices; norms and biases are left alone.")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's moment decay rates.")
    clip_norm: float = Field(1.0, gt=0, description="Largest gradient norm of a step; a greater one is scaled down.")
    renorm: tuple[float, float] = Field(
        (0.1, 0.3),
        description="Of models from scratch that have BatchNorm: the shares of the run at which it begins to go over "
        "from each batch's own statistics to moving ones, and at which it has.",
    )
    stop_norm: float = Field(
        1e5, gt=0, description="Gradient norm, before clipping, at which training stops: it has exploded."
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an exponential moving average of the weights, such as 0.999: the model."
    )
    average: int = Field(
        1, ge=1, description="The final model is the mean of this many last checkpoints (see checkpoint.every_steps)."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "OptimSpec":
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup ({self.warmup:g}) and hold ({self.hold:g}) are more than the whole run")
        if self.ema is not None and self.average > 1:
            raise ValueError("ema and average are two ways of one thing; give one of them")
        return self

    @field_validator("renorm")
    @classmethod
    def _ascends(cls, renorm: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= renorm[0] <= renorm[1] <= 1:
            raise ValueError("give two shares from 0 to 1, the smaller first, such as [0.1, 0.3]")
        return renorm

    @model_validator(mode="after")
    def _one_length(self) -> "OptimSpec":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of epochs and steps; add optim.epochs=null or optim.steps=null")
        return self


class ValidSpec(Section):
    """Scoring of the validation split, beside training: every checkpoint it looks at stays until it is scored."""

    every_steps: int | None = Field(
        None, ge=1, description="Steps between validations; default: at the end of every epoch."
    )
    depth: int | None = Field(None, description="Depth whose WER says which checkpoint is best; default: the deepest.")
    patience: int | None = Field(
        None,
        ge=1,
        description="Validations without a better WER after which training stops, one validation later so that "
        "nobody waits for a score.",
    )
    final: Literal["last", "best"] = Field("last", description="Which checkpoint becomes the final model.")


class ScaleSpec(Section):
    """How much machine. Nothing here changes which utterances make up a step, so the hash leaves it out."""

    workers: int | tuple[int, int] = Field(
        2, description="Training workers, or [least, most]: with fewer machines training goes on with fewer workers."
    )
    use_gpu: bool = Field(False, description="One GPU for each worker.")
    resources_per_worker: dict[str, float] = Field(
        default_factory=dict, description="Ray resources of one worker, such as {CPU: 4}."
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray's placement of the workers over the nodes."
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every worker holds the model; fsdp: weights, gradients and moments are spread over "
        "the workers (FSDP2), each stored block gathered once a pass.",
    )
    activation_checkpointing: bool = Field(
        False, description="Blocks keep no activations and run again in the backward pass: less memory, more time."
    )
    compile: bool = Field(
        False, description="Compile every stored block (torch.compile); for GPUs, since on CPUs it takes many minutes."
    )
    loader_threads: int = Field(
        1, ge=1, description="Threads of each worker that decode, augment and compute features ahead of training."
    )
    validation_resources: dict[str, float] = Field(
        default_factory=dict,
        description="Ray resources of the task that scores validation, such as {GPU: 1}; default: none, it shares the "
        "CPUs of the first worker's node.",
    )
    max_failures: int = Field(2, ge=-1, description="Lost worker groups after which the run gives up; -1: never.")
    max_preemption_failures: int = Field(-1, ge=-1, description="The same for nodes that were drained beforehand.")
    controller_failure_limit: int = Field(-1, ge=-1, description="The same for worker groups that did not start.")
    preemption_grace_s: float = Field(
        0.0, ge=0, description="Seconds that workers may go on beyond the deadline of a drained node."
    )
    elastic_resize_monitor_interval_s: float = Field(
        60.0, gt=0, description="Seconds between looks for room for more workers, where `workers` is a range."
    )

    @field_validator("workers")
    @classmethod
    def _is_a_range(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = (workers, workers) if isinstance(workers, int) else workers
        if least < 1 or most < least:
            raise ValueError("give the least and the most, at least 1, such as [1, 4], or one number")
        return workers

    @property
    def least_workers(self) -> int:
        """Workers without which training does not begin."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers where there is room for all."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class CheckpointSpec(Section):
    """When checkpoints are written and how many stay. Left out of the hash."""

    every_steps: int = Field(100, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints that stay in the store.")


Tracker = Literal["tensorboard", "mlflow", "wandb"]


class BatchSpec(Section):
    """Duration-bucketed batches; the same utterances make up a step whatever the number of workers."""

    max_duration: float = Field(60.0, gt=0, description="Seconds of padded audio in one micro-batch.")
    per_step: int = Field(2, ge=1, description="Micro-batches in one optimiser step, over all workers together.")
    shortest_first: int = Field(
        0,
        ge=0,
        description="Epochs at the start whose batches go from short to long; eases CTC from scratch.",
    )
    longest_first: bool = Field(
        False, description="The longest audio comes first in every epoch: a run short of memory fails at once."
    )
