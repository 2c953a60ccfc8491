"""What each depth of a fold costs: counts of the model's shape, combined by arithmetic over the plan. No torch."""

import itertools
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from foldray.config.model import ModelSpec
from foldray.errors import UserError
from foldray.folding.block_shape import numbers
from foldray.folding.plan import FoldPlan
from foldray.models.families import FAMILIES
from foldray.models.folded_model import FoldedModel
from foldray.models.shape_counts import AS_IS, PRECISIONS, ShapeCounts, find_counts

MACS_SECONDS = 10.0
"""Length of the utterance whose MACs are counted; attention's share grows with it, ten seconds is usual."""
MOST_DRAWS = 10_000
"""Sets of depths that are enumerated for the mean of a training step."""
TOKENS_PER_SECOND = 3
"""Tokens that a decoder emits for a second of audio, about what read English has in sub-words."""
PLAN_VOCAB_SIZE = 32
"""Tokens assumed before a corpus is known: English characters, as in wav2vec 2.0's own heads."""


@dataclass(frozen=True)
class JointCost:
    """One joint step's forward pass over all its depths, for a second of audio.

    Attributes:
        macs_per_audio_second: Multiply-accumulates forward; backward usually counts as twice as much.
        kept_bytes_per_audio_second: Activations kept for backward, in float32, without dropout.
    """

    macs_per_audio_second: float
    kept_bytes_per_audio_second: float


@dataclass(frozen=True)
class DepthCost:
    """The cost of one depth of a fold.

    Attributes:
        params_stored: Parameters stored to run every depth, private parts included; the same for each.
        params_private: Those of the private parts that this depth runs.
        params_unrolled: Parameters of an unshared model of this depth.
        bytes_stored: Bytes of all stored weights, buffers included.
    """

    depth: int
    path: tuple[int, ...]
    trained: bool
    params_stored: int
    params_private: int
    params_unrolled: int
    bytes_stored: int
    macs_per_audio_second: float


# --- Specs and models ------------------------------------------------------------------------------


def plan_costs(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> list[DepthCost]:
    """Compute the cost of every depth of a fold before it is trained.

    The shape is that of the checkpoint if it lies in a folder or bucket, else the one the spec states.

    Raises:
        UserError: The configuration gives no model, or the plan does not fit it; names the field of the spec.
    """
    return depth_costs(counts_of(spec, plan, vocab_size), plan, plan.depths)


def joint_cost(spec: ModelSpec, plan: FoldPlan, vocab_size: int, sampled: int | None = None) -> JointCost:
    """Compute the cost of a joint step: what precedes the blocks once, and every prefix that paths share once.

    Args:
        spec, plan, vocab_size: The fold.
        sampled: How many of the depths between seed and deepest a step draws, as `loss.sampled`. MACs are then the
            mean over all draws, bytes those of the most expensive one (of MOST_DRAWS random ones if there are more).
    """
    counts = counts_of(spec, plan, vocab_size)
    blocks = {depths: len(plan.prefixes(depths)) for depths in _draws(plan.depths, sampled)}
    cheapest, dearest = min(blocks, key=blocks.__getitem__), max(blocks, key=blocks.__getitem__)
    macs = most = _macs(counts, plan, dearest) / MACS_SECONDS
    if fewer := blocks[dearest] - blocks[cheapest]:
        mean = fmean(blocks.values())
        macs = most - (most - _macs(counts, plan, cheapest) / MACS_SECONDS) * (blocks[dearest] - mean) / fewer
    return JointCost(macs, _kept_bytes(counts, plan, dearest) / MACS_SECONDS)


def bytes_at_precisions(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> dict[str, int]:
    """Compute the bytes of the stored weights at each precision."""
    counts = counts_of(spec, plan, vocab_size)
    return {precision: _stored_bytes(counts, plan, precision) for precision in PRECISIONS}


def counts_of(spec: ModelSpec, plan: FoldPlan, vocab_size: int) -> ShapeCounts:
    """Find the counts of a spec's model shape and check that the plan fits it. Raises UserError."""

    def count() -> ShapeCounts:
        from foldray.models.count import count_spec

        return count_spec(spec, plan, vocab_size)

    in_reach = spec.checkpoint and ("://" in spec.checkpoint or spec.checkpoint.startswith(("/", ".", "~")))
    if in_reach or (spec.checkpoint and _is_folder(spec.checkpoint)):
        counts = count()  # its configuration is read, and the plan checked against its number of layers
    else:
        counts = find_counts(shape_key(spec, vocab_size), count)
    try:
        FAMILIES[spec.family].check_plan(plan)
        counts.shape.check(plan.private, is_repeated=max(plan.uses()) > 1)
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise UserError(f"fold.{field}", problem) from None
    return counts


def _is_folder(checkpoint: str) -> bool:
    from pathlib import Path

    return Path(checkpoint).is_dir()


def shape_key(spec: ModelSpec, vocab_size: int) -> dict[str, object]:
    """Return everything that decides the shape of a spec's model, as JSON values."""
    return {"family": spec.family, "config": spec.config, "vocab_size": vocab_size, "seconds": MACS_SECONDS}


def costs_of(model: FoldedModel, depths: Sequence[int] = (), precision: str | None = None) -> list[DepthCost]:
    """Compute the cost of some depths of a folded model, of all planned ones by default, stored at a precision."""
    from foldray.models.count import count_config
    from foldray.models.fold import stack_of

    fields = json.loads(model.config.to_json_string(use_diff=False))
    key = {"class": type(model.config).__name__, "config": fields, "seconds": MACS_SECONDS}
    plan = stack_of(model).plan
    counts = find_counts(key, lambda: count_config(model.config))
    return depth_costs(counts, plan, depths or plan.depths, precision or AS_IS)


# --- Arithmetic ------------------------------------------------------------------------------------


def depth_costs(counts: ShapeCounts, plan: FoldPlan, depths: Sequence[int], precision: str = AS_IS) -> list[DepthCost]:
    """Compute the cost of some depths, trained or not. Raises KeyError for a depth without a path."""
    return [
        DepthCost(
            depth=depth,
            path=plan.path(depth),
            trained=depth in plan.depths,
            params_stored=_stored_params(counts, plan),
            params_private=_repeats(plan, depth) * numbers(counts.shape.parameters(plan.private)),
            params_unrolled=counts.outside.params + counts.first_block.params + (depth - 1) * counts.block.params,
            bytes_stored=_stored_bytes(counts, plan, precision),
            macs_per_audio_second=_macs(counts, plan, [depth]) / MACS_SECONDS,
        )
        for depth in depths
    ]


def _repeats(plan: FoldPlan, depth: int | None = None) -> int:
    """Uses with private parts: of all planned depths, or those of them that one depth runs."""
    stored = plan.uses()
    run = stored if depth is None else plan.uses([depth])
    return sum(max(0, min(pair) - 1) for pair in zip(stored, run, strict=True))


def _stored_params(counts: ShapeCounts, plan: FoldPlan) -> int:
    stock = counts.outside.params + counts.first_block.params + (plan.num_layers - 1) * counts.block.params
    return stock + _repeats(plan) * numbers(counts.shape.parameters(plan.private))


def _stored_bytes(counts: ShapeCounts, plan: FoldPlan, precision: str) -> int:
    parts = (counts.outside, counts.first_block, *[counts.block] * (plan.num_layers - 1))
    floats = [*counts.shape.parameters(plan.private), *counts.shape.statistics(plan.private)]
    private = sum(bytes_at(shape, precision) for shape in floats) + 8 * numbers(counts.shape.counters(plan.private))
    return sum(part.bytes[precision] for part in parts) + _repeats(plan) * private


def bytes_at(shape: tuple[int, ...], precision: str) -> int:
    """Compute the bytes of one float32 tensor stored at a precision."""
    if precision == "int8" and sum(size > 1 for size in shape) > 1:  # as int8.is_quantised
        return math.prod(shape) + 4 * shape[0]
    return math.prod(shape) * (2 if precision == "bfloat16" else 4)


def _macs(counts: ShapeCounts, plan: FoldPlan, depths: Sequence[int]) -> float:
    """Of one utterance in a pass over some depths."""
    prefixes = plan.prefixes(depths)
    private = len(_private_applications(plan, prefixes)) * counts.shape.lora_macs(plan.private)
    return counts.macs.once + len(prefixes) * counts.macs.block + len(depths) * counts.macs.depth + private


def _kept_bytes(counts: ShapeCounts, plan: FoldPlan, depths: Sequence[int]) -> int:
    """Of one utterance in a pass over some depths."""
    prefixes = plan.prefixes(depths)
    private = _private_applications(plan, prefixes)
    inputs = {prefix[:-1] for prefix in prefixes if len(prefix) > 1}
    statistics = {(prefix[-1], 0) for prefix in prefixes}
    if plan.private.statistics:
        statistics |= set(private.values())
    kept = counts.kept
    outside = kept.one_depth if len(depths) == 1 else kept.two_depths + (len(depths) - 2) * kept.further_depth
    inside = len(prefixes) * kept.block + len(inputs) * kept.state + len(statistics) * kept.statistics
    return outside + inside + 4 * len(private) * counts.shape.kept_numbers(plan.private)


def _private_applications(plan: FoldPlan, prefixes: set[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, int]]:
    """Applications of a block that run private parts, and which (layer, use) each one runs."""
    if not plan.private:
        return {}
    uses = plan.uses()
    applications = {prefix: (prefix[-1], prefix[:-1].count(prefix[-1])) for prefix in prefixes}
    return {
        prefix: (layer, min(use, uses[layer] - 1))
        for prefix, (layer, use) in applications.items()
        if use and uses[layer] > 1
    }


def _draws(depths: tuple[int, ...], sampled: int | None) -> list[tuple[int, ...]]:
    """The sets of depths that a step may run; MOST_DRAWS of them if there are more."""
    between = depths[1:-1]
    if sampled is None or sampled >= len(between):
        return [depths]
    if math.comb(len(between), sampled) <= MOST_DRAWS:
        draws = [*itertools.combinations(between, sampled)]
    else:
        rng = random.Random(0)
        draws = [tuple(sorted(rng.sample(between, sampled))) for _ in range(MOST_DRAWS)]
    return [(depths[0], *draw, depths[-1]) for draw in draws]
