"""The search space: from the section `search` of a spec to the specs of its trials."""

import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foldray.config.load import build_spec, override_spec
from foldray.config.search import Domain, SearchSpec
from foldray.config.spec import RunSpec
from foldray.errors import UserError

if TYPE_CHECKING:
    import optuna

Config = dict[str, Any]
"""The values that a sampler drew, by field: numbers as they are, choices as JSON."""


def suggest(search: SearchSpec, trial: "optuna.trial.BaseTrial") -> Config:
    """Draw every field whose conditions hold from an Optuna trial."""
    drawn: Config = {}
    for name, domain in search.space.items():
        allowed = {other: [json.dumps(value) for value in values] for other, values in domain.when.items()}
        if not all(drawn.get(other) in values for other, values in allowed.items()):
            continue
        if domain.values:
            drawn[name] = trial.suggest_categorical(name, [json.dumps(value) for value in domain.values])
        elif domain.integer:
            drawn[name] = trial.suggest_int(name, *domain.integer)
        else:
            low, high = domain.uniform or domain.loguniform or (0.0, 0.0)
            drawn[name] = trial.suggest_float(name, low, high, log=domain.loguniform is not None)
    return drawn


def grid_points(search: SearchSpec) -> list[Config]:
    """Return the combinations of the grids' values, at most one for each trial; the sampler draws the other fields."""
    grids = {name: domain.grid for name, domain in search.space.items() if domain.grid}
    if not grids:
        return []
    points = itertools.product(*([json.dumps(value) for value in values] for values in grids.values()))
    return [dict(zip(grids, point, strict=True)) for point in itertools.islice(points, search.trials)]


def points_left(search: SearchSpec, drawn: Sequence[Config]) -> list[Config]:
    """Return the grids' points that no trial has drawn yet.

    Counting records would miss some: a trial that was killed at its start may have left none.
    """
    return [point for point in grid_points(search) if not any(point.items() <= config.items() for config in drawn)]


def sampler_of(search: SearchSpec) -> "optuna.samplers.BaseSampler":
    """Create the Optuna sampler of a search."""
    from optuna import samplers

    if search.sampler == "random":
        return samplers.RandomSampler(seed=search.seed)
    if search.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=search.seed, population_size=max(4, search.trials // 4))
    # Optuna draws the first ten trials at random by default: all of a small search.
    return samplers.TPESampler(seed=search.seed, n_startup_trials=min(10, max(3, search.trials // 3)))


def overrides_of(search: SearchSpec, config: Config) -> list[str]:
    """Return drawn values as `key=value`, numbers rounded as far as their domain allows so that they can be retyped."""
    return [
        f"{name}={_short(value, search.space[name]) if isinstance(value, float) else value}"
        for name, value in config.items()
    ]


def _short(value: float, domain: Domain) -> float:
    """Round a number to a thousandth of its range (of itself if log-uniform), staying within the range."""
    low, high = domain.uniform or domain.loguniform or (value, value)
    scale = min(high - low, value) if domain.loguniform else high - low
    if not scale:
        return value
    return min(max(round(value, 3 - math.ceil(math.log10(scale))), low), high)


def trial_spec(base: RunSpec, config: Config) -> RunSpec:
    """Return the spec of a trial's run. Raises UserError if the drawn values contradict each other."""
    assert base.search
    return override_spec(plain(base), overrides_of(base.search, config))


def plain(base: RunSpec) -> RunSpec:
    """Return a spec without its section `search`."""
    return base.model_copy(update={"search": None})


def start_spec(base: RunSpec) -> RunSpec:
    """Return the spec of the run whose trained seed all trials start from."""
    assert base.search
    # It runs alone, with as many workers as all concurrent trials together.
    workers = base.scale.most_workers * base.search.concurrent
    alone = plain(base).model_copy(update={"scale": base.scale.model_copy(update={"workers": workers})})
    return override_spec(alone, [f"{name}={json.dumps(value)}" for name, value in base.search.start.items()])


def baseline_spec(base: RunSpec, depth: int) -> RunSpec:
    """Return the spec of an unfolded model of one depth, trained as long as a trial and the start before it."""
    values = plain(base).model_dump(mode="json")
    values["fold"] = {"num_layers": depth, "depths": [depth]}
    values["valid"]["depth"] = None
    if base.search and base.search.start:
        start = start_spec(base).optim
        if (start.epochs is None) != (base.optim.epochs is None):
            raise UserError(
                "search.start",
                "baselines train as long as trial and start; give both in epochs or both in steps",
            )
        for unit in ("epochs", "steps"):
            if values["optim"][unit] is not None and getattr(start, unit) is not None:
                values["optim"][unit] += getattr(start, unit)
    return build_spec(values, "the baseline's spec")
