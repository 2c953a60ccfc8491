"""The optimisation, validation, scale, checkpoint and batch sections."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from foldray.config.section import Section


class OptimSpec(Section):
    """AdamW or Muon: linear warm-up, a hold, a decay; rates and decay by part of the model; averaged weights."""

    kind: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw, or muon: Muon for the matrices of the blocks, AdamW for all else; for training from "
        "scratch.",
    )
    lr: float = Field(1e-3, gt=0, le=1000, description="Peak learning rate.")
    epochs: int | None = Field(
        None, ge=1, le=1_000_000, description="Length of the run in epochs; give either epochs or steps."
    )
    steps: int | None = Field(None, ge=1, le=1_000_000_000, description="Length of the run in optimiser steps.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a linearly rising rate.")
    hold: float = Field(0.0, ge=0, lt=1, description="Share of the steps at the peak rate, after the warm-up.")
    schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = Field(
        "cosine", description="Decay after warm-up and hold; inverse_sqrt is that of the original Transformer."
    )
    final_lr: float = Field(0.01, ge=0, le=1, description="Final rate of the decay as a share of the peak.")
    lr_front: float = Field(
        1.0, ge=0, description="Learning rate of the front end (before the blocks) as a share of lr."
    )
    lr_seed: float = Field(1.0, ge=0, description="Learning rate of the physical layers as a share of lr.")
    lr_private: float = Field(1.0, ge=0, description="Learning rate of the private parts as a share of lr.")
    lr_matrices: float = Field(
        3.0, gt=0, description="Learning rate of the matrices that Muon trains as a share of lr_seed."
    )
    freeze_front: bool = Field(
        False,
        description="Freeze the front end (the convolutions before the blocks); for pretrained models.",
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of matrices; norms and biases have none.")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's moment decay rates.")
    clip_norm: float = Field(1.0, gt=0, description="Gradient norm to clip to.")
    renorm: tuple[float, float] = Field(
        (0.1, 0.3),
        description="BatchNorm in models from scratch: the shares of the run at which its transition from batch "
        "statistics to "
        "moving ones starts and ends.",
    )
    stop_norm: float = Field(
        1e5, gt=0, description="Gradient norm, before clipping, at which training stops as diverged."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, such as 0.999, which becomes the model.",
    )
    average: int = Field(
        1, ge=1, description="Number of last checkpoints whose mean is the final model (see checkpoint.every_steps)."
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> "OptimSpec":
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup ({self.warmup:g}) and hold ({self.hold:g}) exceed the whole run")
        if self.ema is not None and self.average > 1:
            raise ValueError("ema and average both average weights; set one of them")
        return self

    @field_validator("betas")
    @classmethod
    def _are_rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("give two rates from 0 to below 1, such as [0.9, 0.98]")
        return betas

    @field_validator("renorm")
    @classmethod
    def _ascends(cls, renorm: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= renorm[0] <= renorm[1] <= 1:
            raise ValueError("give two shares from 0 to 1, the smaller first, such as [0.1, 0.3]")
        return renorm

    @model_validator(mode="after")
    def _one_length(self) -> "OptimSpec":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set optim.epochs or optim.steps, not both; add optim.epochs=null or optim.steps=null")
        return self


class ValidSpec(Section):
    """Scoring of the validation split in parallel to training; a checkpoint stays until it is scored."""

    every_steps: int | None = Field(
        None, ge=1, description="Steps between validations; default: at the end of every epoch."
    )
    metric: Literal["wer", "cer"] = Field(
        "wer",
        description="Error rate that selects the best checkpoint and stops early: of words, or of characters for "
        "scripts that write no spaces.",
    )
    depth: int | None = Field(
        None, description="Depth whose error rate selects the best checkpoint; default: the deepest."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Validations without a better error rate after which training stops, with one validation of delay "
        "because scores "
        "are not waited for.",
    )
    final: Literal["last", "best"] = Field("last", description="The checkpoint that becomes the final model.")


MOST_WORKERS = 100_000


class ScaleSpec(Section):
    """Workers and resources. They do not change which utterances a step has, so they are not hashed."""

    workers: int | tuple[int, int] = Field(
        2, description="Training workers, or [least, most]: training continues with fewer workers on fewer machines."
    )
    use_gpu: bool = Field(False, description="Use one GPU per worker.")
    resources_per_worker: dict[str, float] = Field(
        default_factory=dict, description="Ray resources per worker, such as {CPU: 4}."
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray's placement strategy for the workers."
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every worker has the whole model; fsdp: weights, gradients and moments are sharded over "
        "the workers "
        "(FSDP2), and each physical layer is gathered once per pass.",
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute the activations of the blocks in backward: less memory, more time."
    )
    compile: bool = Field(
        False,
        description="Compile every physical layer (torch.compile); for GPUs, because it takes many minutes on CPUs.",
    )
    loader_threads: int = Field(
        1, ge=1, le=1024, description="Threads per worker that decode, augment and compute features ahead of training."
    )
    validation_resources: dict[str, float] = Field(
        default_factory=dict,
        description="Ray resources of the validation task, such as {GPU: 1}; default: none, it shares the CPUs of "
        "the first "
        "worker's node.",
    )
    max_failures: int = Field(
        2, ge=-1, description="Failures of a worker group after which the run fails; -1: unlimited."
    )
    max_preemption_failures: int = Field(-1, ge=-1, description="The same for nodes that were preempted.")
    controller_failure_limit: int = Field(-1, ge=-1, description="The same for worker groups that did not start.")
    preemption_grace_s: float = Field(
        0.0, ge=0, description="Seconds that workers may continue beyond the deadline of a preempted node."
    )
    elastic_resize_monitor_interval_s: float = Field(
        60.0, gt=0, description="Seconds between checks for more resources, if `workers` is a range."
    )

    @field_validator("workers")
    @classmethod
    def _is_a_range(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = (workers, workers) if isinstance(workers, int) else workers
        if least < 1 or most < least or most > MOST_WORKERS:
            problem = f"must be a number or a range [least, most] from 1 to {MOST_WORKERS:,}, such as [1, 4]"
            raise ValueError(problem)
        return workers

    @property
    def least_workers(self) -> int:
        """Workers that training needs to start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers if there are resources for all."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class CheckpointSpec(Section):
    """When checkpoints are written and how many are kept. Not hashed."""

    every_steps: int = Field(100, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Number of newest checkpoints to keep.")


Tracker = Literal["tensorboard", "mlflow", "wandb"]


class BatchSpec(Section):
    """Duration-bucketed batches; a step has the same utterances for any number of workers."""

    max_duration: float = Field(60.0, gt=0, le=86_400, description="Seconds of padded audio per micro-batch.")
    per_step: int = Field(
        2, ge=1, le=100_000, description="Micro-batches per optimiser step, over all workers together."
    )
    shortest_first: int = Field(
        0,
        ge=0,
        description="Number of first epochs with batches ordered from short to long; helps CTC from scratch.",
    )
    longest_first: bool = Field(
        False, description="Start every epoch with the longest audio, so that a lack of memory shows at once."
    )
