"""The spec: the complete, immutable description of one run, and the only configuration there is."""

import hashlib
import json
import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from foldray.plan import FoldPlan, Order, Private

Family = Literal[
    "parakeet", "wav2vec2-bert", "wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech-sat",
    "wav2vec2-conformer", "sew", "whisper", "moonshine", "conformer",
]  # fmt: skip
Layout = Literal[
    "auto", "jsonl", "kaldi", "librispeech", "commonvoice", "folder", "webdataset", "parquet", "lhotse",
]  # fmt: skip
TextProfile = Literal["english", "english_lower", "unicode", "unicode_lower", "as_is"]
BUILTIN_CORPUS = "builtin"
SAMPLE_RATE = 16_000
"""Samples a second of all prepared audio; every speech encoder here was trained at it."""


NOT_HASHED = ("about", "storage", "scale", "checkpoint", "corpus", "tracking")
"""Sections that no result depends on; the corpus is hashed by what is in it."""

DEFAULTS_VERSION = 3
"""Raise it with every change to the default of a field that results depend on, or to the order of an epoch."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSpec(_Section):
    """Which audio, and what is kept of it."""

    path: str = Field(
        description="A folder or URI with the corpus; 'builtin' is the spoken corpus foldray makes itself."
    )
    layout: Layout = Field("auto", description="How the corpus is laid out; 'auto' looks and says what it took it for.")
    splits: tuple[str, ...] = Field(
        ("train", "valid", "test"),
        description="Splits to prepare; a missing 'valid' is carved from 'train' by speaker. 'train=A+B' takes the "
        "files or sub-folders A and B of the corpus for it, such as [train=train-clean-100, test=test-other].",
    )
    audio_root: str | None = Field(
        None, description="Folder or URI where relative audio paths begin; default: the folder of their manifest."
    )
    valid_fraction: float = Field(
        0.05, ge=0.0, lt=0.5, description="Share of 'train' carved off as 'valid' where there is none."
    )
    text: TextProfile = Field(
        "english",
        description="Text normalisation: 'english' keeps A-Z and apostrophe, 'unicode' every letter, mark and digit, "
        "both in upper case unless '_lower' follows; 'as_is' only tidies white space.",
    )
    units: Literal["characters", "bpe", "unigram"] = Field(
        "characters",
        description="What transcripts are written in: characters, or sub-words learned from 'train', which are "
        "byte pairs (bpe) or pieces of a unigram model.",
    )
    vocab_size: int | None = Field(
        None,
        gt=0,
        validate_default=True,
        description="How many sub-words, blank and unknown among them; characters are as many as there are.",
    )
    min_seconds: float = Field(0.3, gt=0, description="Shorter utterances are quarantined.")
    max_seconds: float = Field(30.0, gt=0, description="Longer utterances are quarantined.")
    frame_seconds: float = Field(
        0.04,
        ge=0.001,
        description="Audio of one output frame of the models to be trained, 0.02 for wav2vec 2.0 and HuBERT; training "
        "text that CTC can't write in the frames of its audio is quarantined.",
    )
    max_quarantine: float = Field(
        0.05, ge=0, le=1, description="Share of quarantined utterances above which preparation stops."
    )
    shard_minutes: float = Field(15.0, gt=0, description="Minutes of audio in one shard.")
    row_group_seconds: float = Field(
        60.0, gt=0, description="Seconds of audio in one row group, the unit of reading and shuffling."
    )

    @field_validator("path", "audio_root")
    @classmethod
    def _has_no_secret(cls, path: str | None) -> str | None:
        return path and _without_secret(path)

    @field_validator("units")
    @classmethod
    def _has_texts(cls, units: str, info: ValidationInfo) -> str:
        named = {entry.partition("=")[0] for entry in info.data.get("splits", ("train",))}
        if units != "characters" and "train" not in named:
            raise ValueError(f"{units} units are learned from 'train'; add it to corpus.splits")
        return units

    @field_validator("vocab_size")
    @classmethod
    def _suits_units(cls, vocab_size: int | None, info: ValidationInfo) -> int | None:
        units = info.data.get("units", "characters")
        if units == "characters" and vocab_size is not None:
            raise ValueError("is for sub-words; say corpus.units=bpe or unigram, or corpus.vocab_size=null")
        if units != "characters" and vocab_size is None:
            raise ValueError(f"missing; say how many {units} units there are to be, such as 1000")
        return vocab_size

    @model_validator(mode="after")
    def _has_a_range(self) -> "CorpusSpec":
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds:g}) must be below max_seconds ({self.max_seconds:g})")
        return self


def _without_secret(uri: str) -> str:
    _, _, rest = uri.partition("://")
    if "@" in rest.split("/", 1)[0] or "@" in rest.partition("?")[2]:
        raise ValueError("holds credentials; they come from the AWS environment, never from a spec")
    return uri


class StorageSpec(_Section):
    """Where everything worth keeping goes."""

    @field_validator("root")
    @classmethod
    def _has_no_secret(cls, root: str) -> str:
        return _without_secret(root)

    root: str = Field(
        default_factory=lambda: os.environ.get("FOLDRAY_STORE", "./foldray-store"),
        description="The store: a folder or s3://bucket/prefix. Default: $FOLDRAY_STORE or ./foldray-store.",
    )


class ModelSpec(_Section):
    """The stock transformers model that is folded."""

    family: Family = Field(description="Which kind of transformers CTC model.")
    checkpoint: str | None = Field(
        None,
        description="Folder or hub name of a stock checkpoint to start from; without one, random weights.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the model's transformers configuration."
    )
    seed_layers: Literal["stepwise", "first", "average", "svd"] = Field(
        "stepwise",
        description="How a deeper checkpoint becomes the seed: evenly spaced layers, the first ones, the mean of "
        "those a layer stands for, or that and private low-rank parts for what it leaves out (svd, with lora).",
    )


class FoldSpec(_Section):
    """Which layers are stored and which depths they unfold to."""

    num_layers: int = Field(description="Physical layers: the blocks whose weights are stored.")
    depths: tuple[int, ...] = Field(
        description="Logical depths trained together, ascending; the first equals num_layers."
    )
    order: Order = Field(
        "in_place",
        description="0 0 1 1 2 2 (in_place), 0 1 2 0 1 2 (cycle), or cycles inside groups (group).",
    )
    groups: tuple[int, ...] = Field((), description="Sizes of the groups, for order=group.")
    paths: tuple[tuple[int, ...], ...] = Field(
        (), description="Explicit paths, one for each depth, instead of an order."
    )
    keep_first: int = Field(0, description="Layers at the start that are used once at every depth.")
    keep_last: int = Field(0, description="Layers at the end that are used once at every depth.")
    private: str = Field(
        "none",
        description="What each repeated use of a layer has for itself: none, or norms, lora and film joined by '+'.",
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Rank of the private low-rank terms; 8 where private has lora."
    )
    lora_on: tuple[str, ...] = Field(
        (), description="Projections with a low-rank term, such as [q_proj, v_proj]; empty for all of a block."
    )

    @model_validator(mode="after")
    def _is_a_plan(self) -> "FoldSpec":
        self.plan()
        return self

    def private_parts(self) -> Private:
        """What `private`, `lora_rank` and `lora_on` say together."""
        parts = [] if self.private == "none" else self.private.split("+")
        for part in parts:
            if part not in ("norms", "lora", "film"):
                raise ValueError(
                    f"private: '{part}' is none of norms, lora, film; join them by '+', such as norms+lora"
                )
        if self.lora_rank and "lora" not in parts:
            raise ValueError("lora_rank: without LoRA it does nothing; add lora to private")
        rank = (self.lora_rank or 8) if "lora" in parts else 0
        return Private(norms="norms" in parts, lora_rank=rank, lora_on=self.lora_on, film="film" in parts)

    def plan(self) -> FoldPlan:
        """The fold plan these fields describe."""
        return FoldPlan(
            num_layers=self.num_layers,
            depths=self.depths,
            order=self.order,
            keep_first=self.keep_first,
            keep_last=self.keep_last,
            groups=self.groups,
            paths=self.paths,
            private=self.private_parts(),
        )


class LossSpec(_Section):
    """CTC(deepest) + alpha * CTC(shallower) + beta * KL(deepest || shallower), arXiv 2505.21237.

    With a decoder, the same with its cross-entropy, and both with a model that has both.
    """

    alpha: float = Field(1.0, ge=0, description="Weight of the loss of the seed, the shallowest depth.")
    alpha_between: float | None = Field(
        None, ge=0, description="Weight of the loss of each depth between seed and deepest; default: alpha."
    )
    beta: float = Field(
        1.0,
        ge=0,
        description="Weight of the self-distillation KL from the deepest path to each shallower depth.",
    )
    beta_warmup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the run over which beta and hidden rise from zero: a teacher learns first.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Softens both distributions of the KL; its gradient is scaled back by the square.",
    )
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="forward: KL(deepest || shallower); reverse: KL(shallower || deepest)."
    )
    hidden: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared distance between last hidden states, deepest to each shallower depth.",
    )
    sampled: int | None = Field(
        None,
        ge=0,
        description="Depths drawn anew for each step from those between seed and deepest; default: all of them.",
    )
    ctc: float = Field(0.3, ge=0, le=1, description="Share of CTC beside attention, in a model that has both.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Label smoothing of the attention loss.")


class OptimSpec(_Section):
    """AdamW: linear warm-up, a hold, a decay; rates and decay by part of the model; averaged weights."""

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
    freeze_front: bool = Field(
        False,
        description="The front end (the convolutions before the blocks) keeps its weights; for pretrained models.",
    )
    weight_decay: float = Field(0.01, ge=0, description="Decay of matrices; norms and biases are left alone.")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's moment decay rates.")
    clip_norm: float = Field(1.0, gt=0, description="Largest gradient norm of a step; a greater one is scaled down.")
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

    @model_validator(mode="after")
    def _one_length(self) -> "OptimSpec":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of epochs and steps; add optim.epochs=null or optim.steps=null")
        return self


class BatchSpec(_Section):
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


class AugmentSpec(_Section):
    """What is done to audio before the model hears it, drawn anew for each utterance and epoch.

    Masks are SpecAugment (arXiv 1904.08779) on log-mel features; waveform families mask by their own
    `mask_time_prob`.
    """

    speeds: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="Speeds that each utterance is heard at, one drawn for each epoch, such as [0.9, 1.0, 1.1] "
        "(Ko et al., Interspeech 2015).",
    )
    volume_db: float = Field(0.0, ge=0, le=40, description="Most decibels that audio is made louder or softer by.")
    noise_share: float = Field(0.0, ge=0, le=1, description="Share of the utterances that noise is added to.")
    noise_snr_db: tuple[float, float] = Field(
        (10.0, 30.0), description="Least and greatest distance of speech above noise, in decibels."
    )
    noise_path: str | None = Field(
        None, description="Folder or URI with noise recordings; default: noise of random colour, made on the spot."
    )
    from_epoch: int = Field(
        0, ge=0, description="First epoch with masks: from the start they keep CTC from scratch on its plateau."
    )
    time_masks: int = Field(0, ge=0, description="Time masks on each utterance.")
    time_mask_seconds: float = Field(0.3, gt=0, description="Longest time mask.")
    time_mask_share: float = Field(0.2, gt=0, le=1, description="Longest time mask as a share of the utterance.")
    frequency_masks: int = Field(0, ge=0, description="Frequency masks on each utterance.")
    frequency_mask_bins: int = Field(12, ge=1, description="Widest frequency mask in mel bins.")

    @field_validator("speeds")
    @classmethod
    def _are_speeds(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        for speed in speeds:
            if not 0.5 <= speed <= 2:
                raise ValueError(
                    f"{speed:g} is no speed of speech; give factors from 0.5 to 2, such as [0.9, 1.0, 1.1]"
                )
        return speeds

    @field_validator("noise_snr_db")
    @classmethod
    def _ascends(cls, snr: tuple[float, float]) -> tuple[float, float]:
        if snr[0] > snr[1]:
            raise ValueError(f"the least distance comes first; say [{snr[1]:g}, {snr[0]:g}]")
        return snr

    @field_validator("noise_path")
    @classmethod
    def _has_no_secret(cls, path: str | None) -> str | None:
        return path and _without_secret(path)

    @model_validator(mode="after")
    def _uses_its_noise(self) -> "AugmentSpec":
        if self.noise_path and not self.noise_share:
            raise ValueError("noise_path: without a noise_share it does nothing; say augment.noise_share=0.3")
        return self


class ValidSpec(_Section):
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


class ScaleSpec(_Section):
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
        False, description="Compile every stored block (torch.compile); needs a C++ compiler on CPUs."
    )
    loader_threads: int = Field(
        1, ge=1, description="Threads of each worker that decode, augment and compute features ahead of training."
    )
    validation_resources: dict[str, float] = Field(
        default_factory=dict,
        description="Ray resources of the task that scores validation, such as {GPU: 1}; default: none, it takes what "
        "the node that trains has left.",
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


class CheckpointSpec(_Section):
    """When checkpoints are written and how many stay. Left out of the hash."""

    every_steps: int = Field(100, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints that stay in the store.")


Tracker = Literal["tensorboard", "mlflow", "wandb"]


class RunSpec(_Section):
    """Everything that decides what a run computes, and where."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="Name of the recipe or run: lower case, digits, '-', '_' and '.'.",
    )
    about: str = Field("", description="One line for `foldray recipes`.")
    corpus: CorpusSpec
    storage: StorageSpec = Field(default_factory=lambda: StorageSpec())
    model: ModelSpec
    fold: FoldSpec
    loss: LossSpec = LossSpec()
    optim: OptimSpec
    batch: BatchSpec = BatchSpec()
    augment: AugmentSpec = AugmentSpec()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Autocast precision of training; 'auto' is bfloat16 where the device multiplies it natively.",
    )
    valid: ValidSpec = ValidSpec()
    scale: ScaleSpec = ScaleSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    tracking: tuple[Tracker, ...] = Field(
        (),
        description="Where metrics go besides the store: tensorboard, mlflow, wandb (extras of those names), each "
        "set up by its own environment variables.",
    )
    seed: int = Field(0, ge=0, description="Seed of weights, order and augmentation.")

    @model_validator(mode="after")
    def _every_utterance_fits(self) -> "RunSpec":
        if self.batch.max_duration < self.corpus.max_seconds:
            raise ValueError(
                f"batch.max_duration: {self.batch.max_duration:g} s would not hold an utterance of corpus.max_seconds "
                f"({self.corpus.max_seconds:g}); raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _validates_a_depth(self) -> "RunSpec":
        if self.valid.depth is not None and self.valid.depth not in self.fold.depths:
            trained = ", ".join(map(str, self.fold.depths))
            raise ValueError(f"valid.depth: {self.valid.depth} is not trained; say one of {trained}")
        named = {split.partition("=")[0] for split in self.corpus.splits}
        for field, asked in (("patience", self.valid.patience), ("final", self.valid.final == "best")):
            if asked and not named & {"valid", "dev", "validation"}:
                raise ValueError(f"valid.{field}: needs a validation split; add valid to corpus.splits")
        if self.valid.final == "best" and self.optim.average > 1:
            raise ValueError("valid.final: best is one checkpoint; set optim.average=1, or valid.final=last")
        return self

    @model_validator(mode="after")
    def _has_a_seed(self) -> "RunSpec":
        method = self.model.seed_layers
        if method != "stepwise" and not self.model.checkpoint:
            raise ValueError(f"model.seed_layers: {method} needs a model.checkpoint to make the seed of")
        if method == "svd" and not self.fold.private_parts().lora_rank:
            raise ValueError("model.seed_layers: svd puts what the mean leaves out into LoRA; add lora to fold.private")
        return self

    def spec_hash(self, corpus_id: str, vocabulary: str) -> str:
        """Ten hex digits over every field that results depend on, the prepared corpus's identity and its units' digest.

        Fields at their defaults are left out, so that a field added later changes no run's name.
        """
        kept = self.model_dump(mode="json", exclude=set(NOT_HASHED), exclude_defaults=True)
        facts: dict[str, Any] = {"corpus_id": corpus_id, "vocabulary": vocabulary, "defaults": DEFAULTS_VERSION}
        if self.optim.average > 1:
            facts["average_every"] = self.checkpoint.every_steps
        return hashlib.sha256(json.dumps({**kept, **facts}, sort_keys=True).encode()).hexdigest()[:10]

    def other_results(self, other: "RunSpec") -> str | None:
        """The first field in which two specs differ and that results depend on; None where there is none."""
        for name in type(self).model_fields:
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs and (name == "corpus" or name not in NOT_HASHED):
                fields = type(ours).model_fields if isinstance(ours, BaseModel) else {}
                inner = [field for field in fields if getattr(ours, field) != getattr(theirs, field)]
                return ".".join([name, *inner[:1]])
        if self.optim.average > 1 and self.checkpoint.every_steps != other.checkpoint.every_steps:
            return "checkpoint.every_steps"
        return None

    def run_id(self, corpus_id: str, vocabulary: str) -> str:
        """Name and hash: the same spec on the same corpus resumes its run, another can never overwrite it."""
        return f"{self.name}-{self.spec_hash(corpus_id, vocabulary)}"
