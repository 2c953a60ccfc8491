"""The search section: what `foldray tune` varies, how, and its objectives."""

import math
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from foldray.config.section import Section

KINDS = ("choice", "uniform", "loguniform", "integer", "grid")
OBJECTIVE = re.compile(r"(wer|cer|loss|macs)(@\d+)?|bytes|params")


class Domain(Section):
    """Values of one field: exactly one of choice, uniform, loguniform, integer and grid."""

    choice: tuple[Any, ...] | None = Field(None, description="One of these values.")
    uniform: tuple[float, float] | None = Field(None, description="A number in a range.")
    loguniform: tuple[float, float] | None = Field(None, description="A number in a range, uniform in its logarithm.")
    integer: tuple[int, int] | None = Field(None, description="An integer in a range, both ends included.")
    grid: tuple[Any, ...] | None = Field(
        None,
        description="Every value, combined with every value of the other grids, before any combination is repeated.",
    )
    when: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="Only if earlier fields have one of these values, such as {fold.private: [lora]}.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Domain":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(KINDS)} (got {', '.join(given) or 'none'})")
        if given[0] in ("choice", "grid"):
            if not self.values:
                raise ValueError(f"{given[0]}: needs at least one value")
            return self
        low, high = self.uniform or self.loguniform or self.integer or (0, 0)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{given[0]}: both must be finite")
        if high < low or (self.loguniform and low <= 0):
            raise ValueError(f"{given[0]}: the first must be smaller{' and above 0' * (given[0] == 'loguniform')}")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """Values of a choice or a grid."""
        return self.choice or self.grid or ()


class Asha(Section):
    """Asynchronous successive halving (arXiv 1810.05934), by validation loss per label."""

    grace: float = Field(0.25, gt=0, lt=1, description="Share of a run before which no trial is stopped.")
    reduction: float = Field(
        2.0,
        gt=1,
        description="At grace, grace * reduction, … of a run, only the best 1/reduction of the trials continue.",
    )


class SearchSpec(Section):
    """Trials of `foldray tune`; each one is an ordinary run of this recipe with some fields set."""

    space: dict[str, Domain] = Field(description="Domains by spec field, such as {loss.alpha: {uniform: [0, 1]}}.")
    trials: int = Field(8, ge=1, description="Number of trials, without baselines.")
    concurrent: int = Field(2, ge=1, description="Trials that run at the same time.")
    sampler: Literal["tpe", "nsga2", "random"] = Field("tpe", description="Sampler of Optuna, seeded with search.seed.")
    objectives: tuple[str, ...] = Field(
        ("wer",),
        description="Objectives to minimise: wer, cer and loss on the validation split (of the deepest depth, or "
        "wer@6), bytes, params, macs (or macs@6).",
    )
    asha: Asha | None = Field(Asha(), description="Early stopping of trials; null: none.")
    baselines: tuple[int, ...] = Field(
        (),
        description="Depths that are also trained as separate models without sharing, as long as a trial and its "
        "start.",
    )
    start: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of a run that is trained once and whose seed all trials start from, such as "
        "{optim.epochs: 6}; "
        "default: each trial starts as the recipe does.",
    )
    seed: int = Field(0, ge=0, description="Random seed of the sampler.")

    @model_validator(mode="after")
    def _hangs_together(self) -> "SearchSpec":
        if not self.space:
            raise ValueError("space: name at least one field, such as {loss.alpha: {uniform: [0, 1]}}")
        before: set[str] = set()
        for name, domain in self.space.items():
            if late := [each for each in domain.when if each not in before]:
                raise ValueError(f"space.{name}.when: {late[0]} is not named before it in search.space")
            before.add(name)
        for objective in self.objectives:
            if not OBJECTIVE.fullmatch(objective):
                raise ValueError(
                    f"objectives: '{objective}' must be one of wer, cer, loss, macs (also wer@6), bytes, params"
                )
        if not self.objectives:
            raise ValueError("objectives: name at least one, such as wer")
        for name, values in (("objectives", self.objectives), ("baselines", self.baselines)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: contains a duplicate")
        if min(self.baselines, default=1) < 1:
            raise ValueError("baselines: depths must be 1 or more")
        return self
