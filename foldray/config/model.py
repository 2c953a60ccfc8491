"""The model, fold and loss sections."""

import functools
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from foldray.config.section import Section, Uri
from foldray.folding.plan import MOST_LAYERS, MOST_RANK, FoldPlan, Order, Private, check_pairs
from foldray.storage.uri import is_plain

CHECKPOINT = "checkpoint"
"""Value of `loss.teacher` for `model.checkpoint` itself."""
RUN = "run:"
"""Before the id of a run, in `model.checkpoint`."""

FAMILY_NAMES = tuple(
    sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "models" / "families")])
        if not module.name.startswith("_")
    )
)
"""Names of the model families: those of their files, which are not imported here."""


def _known_family(name: str) -> str:
    if name not in FAMILY_NAMES:
        raise ValueError(f"'{name}' must be one of {', '.join(FAMILY_NAMES)}")
    return name


FamilyName = Annotated[str, AfterValidator(_known_family)]
LayerNumber = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]


class ModelSpec(Section):
    """The stock transformers model that is folded."""

    family: FamilyName = Field(description="Model family of transformers, such as wav2vec2 or parakeet.")
    checkpoint: Uri | None = Field(
        None,
        description="Folder, URI or hub name of a stock checkpoint to start from, or run:RUN_ID for the seed of a "
        "finished run in the same store; default: random weights.",
    )

    @field_validator("checkpoint")
    @classmethod
    def _names_a_run(cls, checkpoint: str | None) -> str | None:
        if checkpoint and checkpoint.startswith(RUN) and not is_plain(checkpoint.removeprefix(RUN)):
            raise ValueError(f"'{checkpoint}' must be {RUN} and the id of a run in the same store")
        return checkpoint

    config: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the model's transformers configuration."
    )
    window: Literal["audio", "full"] = Field(
        "audio",
        description="Models of a fixed length (Whisper's 30 s): run on windows as long as the longest utterance of a "
        "batch (audio), ten times faster on short utterances, or of the model's length (full), which a checkpoint "
        "that is not fine-tuned expects.",
    )
    seed_layers: Literal["stepwise", "first", "average", "svd"] = Field(
        "stepwise",
        description="How layers of a deeper checkpoint become the physical ones: evenly spaced (stepwise), the first "
        "ones, the mean of those that each replaces (average), or the mean plus private LoRA for the residual (svd).",
    )
    layers: tuple[LayerNumber, ...] = Field(
        (),
        description="Layers of the checkpoint's encoder to use, ascending, counted from 0, such as [0, 2, 3, 5]; the "
        "others are dropped before seed_layers applies. Default: all.",
    )
    decoder_layers: tuple[LayerNumber, ...] = Field((), description="The same for the decoder.")


class StackSpec(Section):
    """Physical layers of a stack and the depths they unfold to."""

    num_layers: int = Field(
        le=MOST_LAYERS, description="Number of physical layers: the blocks whose weights are stored."
    )
    depths: tuple[Annotated[int, Field(le=MOST_LAYERS)], ...] = Field(
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
    keep_first: int = Field(0, description="Number of first layers that every depth uses once.")
    keep_last: int = Field(0, description="Number of last layers that every depth uses once.")
    private: str = Field(
        "none",
        description="Private parts of each repeated use of a layer: none, or norms, statistics (of BatchNorm), lora "
        "and "
        "film joined by '+'.",
    )
    lora_rank: int | None = Field(
        None, ge=1, le=MOST_RANK, description="Rank of the private low-rank terms; default: 8 if private has lora."
    )
    lora_on: tuple[str, ...] = Field(
        (), description="Projections with a low-rank term, such as [q_proj, v_proj]; default: all of a block."
    )

    @model_validator(mode="after")
    def _is_a_plan(self) -> Self:
        self.plan()
        return self

    def private_parts(self) -> Private:
        """Combine `private`, `lora_rank` and `lora_on`."""
        parts = [] if self.private == "none" else self.private.split("+")
        for part in parts:
            if part not in ("norms", "statistics", "lora", "film"):
                raise ValueError(
                    f"private: '{part}' must be one of norms, statistics, lora, film, or several joined by '+'"
                )
        if self.lora_rank and "lora" not in parts:
            raise ValueError("lora_rank: has no effect without LoRA; add lora to private")
        rank = (self.lora_rank or 8) if "lora" in parts else 0
        return Private(
            norms="norms" in parts,
            lora_rank=rank,
            lora_on=self.lora_on,
            film="film" in parts,
            statistics="statistics" in parts,
        )

    def plan(self) -> FoldPlan:
        """Return the fold plan these fields describe."""
        return _plan_of(self)


class FoldSpec(StackSpec):
    """The encoder's layers and depths, and those of a decoder that is folded too."""

    decoder: StackSpec | None = Field(
        None,
        description="The same fields for the decoder of whisper or moonshine; default: it is not folded. Its depths "
        "belong to the encoder's by position, or a single one to all of them.",
    )

    @model_validator(mode="after")
    def _is_paired(self) -> Self:
        if self.decoder:
            check_pairs(self.plan(), self.decoder.plan())
        return self


@functools.lru_cache(maxsize=64)
def _plan_of(spec: StackSpec) -> FoldPlan:
    return FoldPlan(
        num_layers=spec.num_layers,
        depths=spec.depths,
        order=spec.order,
        keep_first=spec.keep_first,
        keep_last=spec.keep_last,
        groups=spec.groups,
        paths=spec.paths,
        private=spec.private_parts(),
    )


@dataclass(frozen=True)
class PlannedModel:
    """A model and how it is folded: what its costs depend on.

    Attributes:
        model: The spec's model; a checkpoint is a folder, a URI or a hub name.
        plan: Its fold plan.
        decoder: The fold plan of its decoder; None for a stock one.
    """

    model: ModelSpec
    plan: FoldPlan
    decoder: FoldPlan | None = None


class LossSpec(Section):
    """Joint loss: CTC(deepest) + alpha * CTC(shallower) + beta * KL(deepest || shallower), arXiv 2505.21237.

    A hybrid model adds the same terms with its decoder's cross-entropy.
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
        description="Share of the run over which beta and hidden rise from zero, so that the teacher learns first.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Temperature of both distributions of the KL, which is multiplied by its square.",
    )
    direction: Literal["forward", "reverse"] = Field(
        "forward", description="forward: KL(deepest || shallower); reverse: KL(shallower || deepest)."
    )
    hidden: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared distance between the last hidden states of the deepest and each shallower "
        "depth.",
    )
    sampled: int | None = Field(
        None,
        ge=0,
        description="Number of depths drawn for each step from those between seed and deepest; default: all of them.",
    )
    ctc: float = Field(0.3, ge=0, le=1, description="Weight of CTC in a hybrid model; attention gets the rest.")
    teacher: Uri | None = Field(
        None,
        description="A frozen teacher: `checkpoint` for model.checkpoint before it is folded, or a folder, URI, hub "
        "name or run:RUN_ID with the same tokens.",
    )
    gamma: float = Field(1.0, ge=0, description="Weight of the KL from loss.teacher to every depth.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Label smoothing of the attention loss.")
