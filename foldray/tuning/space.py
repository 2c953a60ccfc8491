"""From a search section to the spec of a trial."""

import itertools
import json
from typing import Any

from foldray.spec import RunSpec, SearchSpec
from foldray.spec_input import build_spec, override_spec

Config = dict[str, Any]
"""What a sampler drew, by field: numbers as they are, choices as JSON."""


def suggest(search: SearchSpec, trial: Any) -> Config:
    """Draw every field that applies from an Optuna trial."""
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
    """Every combination of the grids' values, as many as there are trials; the sampler draws the other fields."""
    grids = {name: domain.grid for name, domain in search.space.items() if domain.grid}
    if not grids:
        return []
    points = itertools.product(*([json.dumps(value) for value in values] for values in grids.values()))
    return [dict(zip(grids, point, strict=True)) for point in itertools.islice(points, search.trials)]


def sampler_of(search: SearchSpec) -> Any:
    """Optuna's sampler."""
    from optuna import samplers

    if search.sampler == "random":
        return samplers.RandomSampler(seed=search.seed)
    if search.sampler == "nsga2":
        return samplers.NSGAIISampler(seed=search.seed, population_size=max(4, search.trials // 4))
    # By default ten trials are drawn at random, which is all that a small search has.
    return samplers.TPESampler(seed=search.seed, n_startup_trials=min(10, max(3, search.trials // 3)))


def overrides_of(config: Config) -> list[str]:
    """What was drawn as `key=value`; numbers in three digits, so that people can read and repeat them."""
    return [f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in config.items()]


def trial_spec(base: RunSpec, config: Config) -> RunSpec:
    """The ordinary run that is a trial. Raises UserError where the drawn fields do not go together."""
    return override_spec(plain(base), overrides_of(config))


def plain(base: RunSpec) -> RunSpec:
    """A spec without its search."""
    return base.model_copy(update={"search": None})


def start_spec(base: RunSpec) -> RunSpec:
    """The run whose seed all trials begin with."""
    assert base.search
    # It has the machine for itself: as many workers as all trials together.
    workers = base.scale.most_workers * base.search.concurrent
    alone = plain(base).model_copy(update={"scale": base.scale.model_copy(update={"workers": workers})})
    return override_spec(alone, [f"{name}={json.dumps(value)}" for name, value in base.search.start.items()])


def baseline_spec(base: RunSpec, depth: int) -> RunSpec:
    """A model of one depth by itself, trained as long as a trial and the start before it."""
    values = plain(base).model_dump(mode="json")
    values["fold"] = {"num_layers": depth, "depths": [depth]}
    values["valid"]["depth"] = None
    if base.search and base.search.start:
        start = start_spec(base).optim
        for unit in ("epochs", "steps"):
            if values["optim"][unit] is not None and getattr(start, unit) is not None:
                values["optim"][unit] += getattr(start, unit)
    return build_spec(values, "the baseline's spec")
