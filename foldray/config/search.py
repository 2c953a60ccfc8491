"""What `foldray tune` varies, how it chooses, and what it looks for."""

import math
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from foldray.config.section import Section

KINDS = ("choice", "uniform", "loguniform", "integer", "grid")
OBJECTIVE = re.compile(r"(wer|loss|macs)(@\d+)?|bytes|params")


class Domain(Section):
    """The values of one field: exactly one of choice, uniform, loguniform, integer and grid."""

    choice: tuple[Any, ...] | None = Field(None, description="One of these values.")
    uniform: tuple[float, float] | None = Field(None, description="A number between two.")
    loguniform: tuple[float, float] | None = Field(None, description="A number between two, by its logarithm.")
    integer: tuple[int, int] | None = Field(None, description="A whole number between two, both included.")
    grid: tuple[Any, ...] | None = Field(
        None, description="Every value, with every value of the other grids, before anything is drawn twice."
    )
    when: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="Only where fields named before have one of these values, such as {fold.private: [lora]}.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(KINDS)} (got {', '.join(given) or 'none'})")
        if given[0] in ("choice", "grid"):
            if not self.values:
                raise ValueError(f"{given[0]}: needs a value at least")
            return self
        low, high = self.uniform or self.loguniform or self.integer or (0, 0)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{given[0]}: both must be finite")
        if high < low or (self.loguniform and low <= 0):
            raise ValueError(f"{given[0]}: the first must be the smaller{' and above 0' * (given[0] == 'loguniform')}")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """Of a choice or a grid."""
        return self.choice or self.grid or ()


class Asha(Section):
    """Asynchronous successive halving (arXiv 1810.05934), by validation loss per label."""

    grace: float = Field(0.25, gt=0, lt=1, description="Share of a run before which no trial is stopped.")
    reduction: float = Field(
        2.0, gt=1, description="At grace, grace * reduction, … of a run, only the best 1/reduction of trials go on."
    )


class SearchSpec(Section):
    """Trials of `foldray tune`: every one is an ordinary run of this recipe with some fields set."""

    space: dict[str, Domain] = Field(description="Domains by spec field, such as {loss.alpha: {uniform: [0, 1]}}.")
    trials: int = Field(8, ge=1, description="How many, baselines not counted.")
    concurrent: int = Field(2, ge=1, description="How many at once.")
    sampler: Literal["tpe", "nsga2", "random"] = Field("tpe", description="Optuna's, seeded with search.seed.")
    objectives: tuple[str, ...] = Field(
        ("wer",),
        description="What is minimised: wer and loss on the validation split (of the deepest depth, or wer@6), "
        "bytes, params, macs (or macs@6).",
    )
    asha: Asha | None = Field(Asha(), description="Which trials are stopped early; null: none.")
    baselines: tuple[int, ...] = Field(
        (), description="Depths that are also trained by themselves, nothing shared, as long as a trial and its start."
    )
    start: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of a run that is trained once and whose seed all trials begin with, such as "
        "{optim.epochs: 6}; empty: each begins as the recipe says.",
    )
    seed: int = Field(0, ge=0, description="Seed of the sampler.")

    @model_validator(mode="after")
    def _hangs_together(self) -> "SearchSpec":
        if not self.space:
            raise ValueError("space: name a field at least, such as {loss.alpha: {uniform: [0, 1]}}")
        before: set[str] = set()
        for name, domain in self.space.items():
            if late := [each for each in domain.when if each not in before]:
                raise ValueError(f"space.{name}.when: {late[0]} is not named before it in search.space")
            before.add(name)
        for objective in self.objectives:
            if not OBJECTIVE.fullmatch(objective):
                raise ValueError(f"objectives: '{objective}' is none of wer, loss, macs (also wer@6), bytes, params")
        if not self.objectives:
            raise ValueError("objectives: name one at least, such as wer")
        for name, values in (("objectives", self.objectives), ("baselines", self.baselines)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one is named twice")
        if min(self.baselines, default=1) < 1:
            raise ValueError("baselines: depths begin with 1")
        return self
