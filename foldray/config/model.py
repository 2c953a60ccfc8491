"""What is folded, and what its depths learn together."""

import functools
import pkgutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from foldray.config.section import Section
from foldray.folding.plan import FoldPlan, Order, Private

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


class ModelSpec(Section):
    """The stock transformers model that is folded."""

    family: FamilyName = Field(description="Model family of transformers, such as wav2vec2 or parakeet.")
    checkpoint: str | None = Field(
        None,
        description="Folder, URI or hub name of a stock checkpoint to start from, or run:RUN_ID, the seed of a "
        "finished run in the same store; without one, random weights.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the model's transformers configuration."
    )
    seed_layers: Literal["stepwise", "first", "average", "svd"] = Field(
        "stepwise",
        description="How a deeper checkpoint becomes the seed: evenly spaced layers, the first ones, the mean of "
        "those a layer stands for, or that and private low-rank parts for what it leaves out (svd, with lora).",
    )


class FoldSpec(Section):
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
        description="What each repeated use of a layer has for itself: none, or norms, statistics (BatchNorm's), lora "
        "and film joined by '+'.",
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
            if part not in ("norms", "statistics", "lora", "film"):
                raise ValueError(
                    f"private: '{part}' is none of norms, statistics, lora, film; join them by '+', such as norms+lora"
                )
        if self.lora_rank and "lora" not in parts:
            raise ValueError("lora_rank: without LoRA it does nothing; add lora to private")
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


@functools.lru_cache(maxsize=64)
def _plan_of(spec: FoldSpec) -> FoldPlan:
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


class LossSpec(Section):
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
