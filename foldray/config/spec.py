"""The spec: the complete, immutable configuration of one run."""

import hashlib
import json
import os
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, model_validator

from foldray.config.augment import AugmentSpec
from foldray.config.corpus import CorpusSpec
from foldray.config.model import CHECKPOINT, RUN, FoldSpec, LossSpec, ModelSpec, PlannedModel
from foldray.config.search import SearchSpec
from foldray.config.section import Section, Uri
from foldray.config.training import BatchSpec, CheckpointSpec, OptimSpec, ScaleSpec, Tracker, ValidSpec
from foldray.folding.plan import check_chosen
from foldray.storage.layout import Store

NOT_HASHED = ("about", "storage", "scale", "checkpoint", "corpus", "tracking", "search")
"""Sections that no result depends on; the corpus is hashed by its content."""

DEFAULTS_VERSION = 1
"""Raise it with every change to the default of a field that results depend on, to the weights that training begins
with, or to the order of an epoch."""


class StorageSpec(Section):
    """Where results, checkpoints and prepared corpora are stored."""

    root: Uri = Field(
        default_factory=lambda: os.environ.get("FOLDRAY_STORE", "./foldray-store"),
        validate_default=True,
        description="The store: a folder or s3://bucket/prefix. Default: $FOLDRAY_STORE or ./foldray-store.",
    )


class RunSpec(Section):
    """Everything that determines what a run computes, and where."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$",
        description="Name of the recipe or run: lower case, digits, '-', '_' and '.'.",
    )
    about: str = Field("", description="One line for `foldray recipes`.")
    corpus: CorpusSpec
    storage: StorageSpec = Field(default_factory=StorageSpec)
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
        description="Where metrics go in addition to the store: tensorboard, mlflow, wandb (extras of those names), "
        "each "
        "configured by its own environment variables.",
    )
    seed: int = Field(0, ge=0, description="Random seed of weights, order and augmentation.")
    search: SearchSpec | None = Field(None, description="What `foldray tune` varies.")

    @model_validator(mode="before")
    @classmethod
    def _takes_the_tokens_of_its_checkpoint(cls, values: Any) -> Any:
        """Fill in `corpus.tokenizer`, so that preparation needs no other section."""
        sections = [values.get(name) for name in ("corpus", "model", "storage")] if isinstance(values, dict) else []
        corpus, model, store = [each if isinstance(each, dict) else {} for each in sections] or [{}, {}, {}]
        if corpus.get("units") != "checkpoint" or corpus.get("tokenizer") or not model.get("checkpoint"):
            return values
        tokenizer = str(model["checkpoint"])
        if tokenizer.startswith(RUN):
            root = store.get("root") or StorageSpec().root
            tokenizer = Store(str(root)).run(tokenizer.removeprefix(RUN)).model.uri
        return {**values, "corpus": {**corpus, "tokenizer": tokenizer}}

    @model_validator(mode="after")
    def _has_tokens(self) -> "RunSpec":
        if self.corpus.units == "checkpoint" and not self.corpus.tokenizer:
            raise ValueError("corpus.tokenizer: missing; set it, or model.checkpoint, for corpus.units=checkpoint")
        return self

    @model_validator(mode="after")
    def _every_utterance_fits(self) -> "RunSpec":
        if self.batch.max_duration < self.corpus.max_seconds:
            raise ValueError(
                f"batch.max_duration: {self.batch.max_duration:g} s is shorter than corpus.max_seconds "
                f"({self.corpus.max_seconds:g}); raise one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _validates_a_depth(self) -> "RunSpec":
        if self.valid.depth is not None and self.valid.depth not in self.fold.depths:
            trained = ", ".join(map(str, self.fold.depths))
            raise ValueError(f"valid.depth: {self.valid.depth} is not trained; set it to one of {trained}")
        for field, asked in (("patience", self.valid.patience), ("final", self.valid.final == "best")):
            if asked and "valid" not in self.corpus.split_names:
                raise ValueError(f"valid.{field}: needs a validation split; add valid to corpus.splits")
        if self.valid.final == "best" and self.optim.average > 1:
            raise ValueError("valid.final: best selects one checkpoint; set optim.average=1, or valid.final=last")
        return self

    @model_validator(mode="after")
    def _has_a_seed(self) -> "RunSpec":
        method = self.model.seed_layers
        if method != "stepwise" and not self.model.checkpoint:
            raise ValueError(f"model.seed_layers: {method} needs a model.checkpoint")
        if method == "svd" and not self.fold.private_parts().lora_rank:
            raise ValueError("model.seed_layers: svd stores the residual of the mean in LoRA; add lora to fold.private")
        if method == "svd" and self.fold.decoder and not self.fold.decoder.private_parts().lora_rank:
            raise ValueError("model.seed_layers: svd folds both stacks; add lora to fold.decoder.private")
        if self.fold.private_parts().statistics and self.model.checkpoint and method != "svd":
            raise ValueError(
                "fold.private: statistics of a checkpoint never change, so those of all uses would stay equal; remove "
                "them, or set model.seed_layers=svd"
            )
        return self

    @model_validator(mode="after")
    def _has_the_chosen_layers(self) -> "RunSpec":
        model = self.model
        for field, layers, stack in (
            ("model.layers", model.layers, self.fold),
            ("model.decoder_layers", model.decoder_layers, self.fold.decoder),
        ):
            if not layers:
                continue
            if not model.checkpoint:
                raise ValueError(f"{field}: {list(layers)} needs a model.checkpoint")
            if not stack:
                raise ValueError(f"{field}: the decoder is not folded (fold.decoder); remove it")
            try:
                check_chosen(layers, stack.num_layers)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
        return self

    @model_validator(mode="after")
    def _has_a_teacher(self) -> "RunSpec":
        if self.loss.teacher == CHECKPOINT and not self.model.checkpoint:
            raise ValueError("loss.teacher: checkpoint needs a model.checkpoint")
        return self

    @model_validator(mode="after")
    def _can_be_searched(self) -> "RunSpec":
        if not self.search:
            return self
        for name in (*self.search.space, *self.search.start):
            if name.partition(".")[0] in NOT_HASHED:
                raise ValueError(f"search: {name} can't be searched; it is shared by all trials or affects no result")
            if not _is_field(name):
                raise ValueError(f"search: {name} is not a field of a spec")
        if self.search.objectives and "valid" not in self.corpus.split_names:
            raise ValueError("search: trials are ranked by a validation split; add valid to corpus.splits")
        return self

    def planned_model(self) -> PlannedModel:
        """Return model and fold plan; a checkpoint `run:RUN_ID` (the seed of a run in this store) becomes its URI."""
        model = self.model
        if (model.checkpoint or "").startswith(RUN):
            run_id = str(model.checkpoint).removeprefix(RUN)
            model = model.model_copy(update={"checkpoint": self.store.run(run_id).model.uri})
        decoder = self.fold.decoder
        return PlannedModel(model, self.fold.plan(), decoder.plan() if decoder else None)

    @property
    def store(self) -> Store:
        """The store that the run is written to."""
        return Store(self.storage.root)

    def in_store(self, store: Store) -> "RunSpec":
        """The same spec with another store."""
        return self.model_copy(update={"storage": self.storage.model_copy(update={"root": store.root})})

    def spec_hash(self, corpus_id: str, vocabulary: str) -> str:
        """Ten hex digits over every field that results depend on, the prepared corpus's identity and tokenizer.

        Fields at their defaults are left out, so that a field added later changes no run's name.
        """
        kept = self.model_dump(mode="json", exclude=set(NOT_HASHED), exclude_defaults=True)
        facts: dict[str, Any] = {"corpus_id": corpus_id, "vocabulary": vocabulary, "defaults": DEFAULTS_VERSION}
        if self.optim.average > 1:
            facts["average_every"] = self.checkpoint.every_steps
        return hashlib.sha256(json.dumps({**kept, **facts}, sort_keys=True).encode()).hexdigest()[:10]

    def search_hash(self, corpus_id: str, vocabulary: str) -> str:
        """Ten hex digits over the search, without its length and concurrency."""
        assert self.search
        asked = self.search.model_dump(mode="json", exclude={"trials", "concurrent"})
        facts = json.dumps([self.spec_hash(corpus_id, vocabulary), asked], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:10]

    def other_results(self, other: "RunSpec") -> str | None:
        """Find the first differing field that results depend on; None if there is none."""
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
        """Return name and hash: the same spec on the same corpus resumes its run, another never overwrites it."""
        return f"{self.name}-{self.spec_hash(corpus_id, vocabulary)}"


def _is_field(name: str) -> bool:
    """Whether a dotted name is a field, or an entry of one that is a mapping."""
    first, *inner = name.split(".")
    kind = RunSpec.model_fields[first].annotation if first in RunSpec.model_fields else None
    while inner and isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(inner.pop(0))
        kind = _section_in(field.annotation) if field else None
    is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
    return kind is not None and not is_section and (not inner or get_origin(kind) is dict)


def _section_in(annotation: Any) -> Any:
    """The section that an optional field holds; any other annotation as it is."""
    kind, *rest = get_args(annotation) or (annotation,)
    return kind if rest == [type(None)] else annotation
