"""What each depth of a fold costs: counts of the model's shape, combined by arithmetic over the plan. No torch."""

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from foldray.config.model import ModelSpec, PlannedModel
from foldray.errors import UserError
from foldray.folding.plan import FoldPlan
from foldray.models.cost_sums import DecoderSums, private_applications, private_bytes, private_params
from foldray.models.families import FAMILIES
from foldray.models.folded_model import FoldedModel
from foldray.models.shape_counts import AS_IS, PRECISIONS, ShapeCounts, find_counts
from foldray.models.windows import USUAL_SECONDS

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
        decoder_path: The path in a folded decoder; None for a stock one.
    """

    depth: int
    path: tuple[int, ...]
    trained: bool
    params_stored: int
    params_private: int
    params_unrolled: int
    bytes_stored: int
    macs_per_audio_second: float
    decoder_path: tuple[int, ...] | None = None


# --- Specs and models ------------------------------------------------------------------------------


def plan_costs(planned: PlannedModel, vocab_size: int) -> list[DepthCost]:
    """Compute the cost of every depth of a fold before it is trained.

    The shape is that of the checkpoint if it lies in a folder or bucket, else the one the spec states.

    Raises:
        UserError: The configuration gives no model, or the plan does not fit it; names the field of the spec.
    """
    counts = counts_of(planned, vocab_size)
    return depth_costs(counts, planned.plan, planned.plan.depths, decoder=planned.decoder)


def joint_cost(planned: PlannedModel, vocab_size: int, sampled: int | None = None) -> JointCost:
    """Compute the cost of a joint step: what precedes the blocks once, and every prefix that paths share once.

    Args:
        planned, vocab_size: The fold, and the size of its vocabulary.
        sampled: How many of the depths between seed and deepest a step draws, as `loss.sampled`. MACs are then the
            mean over all draws, bytes those of the most expensive one (of MOST_DRAWS random ones if there are more).
    """
    counts, plan = counts_of(planned, vocab_size), planned.plan
    decoder = _sums(counts, plan, planned.decoder)
    blocks = {depths: len(plan.prefixes(depths)) for depths in _draws(plan.depths, sampled)}
    cheapest, dearest = min(blocks, key=blocks.__getitem__), max(blocks, key=blocks.__getitem__)
    macs = most = _macs(counts, plan, dearest) / MACS_SECONDS
    if fewer := blocks[dearest] - blocks[cheapest]:
        mean = fmean(blocks.values())
        macs = most - (most - _macs(counts, plan, cheapest) / MACS_SECONDS) * (blocks[dearest] - mean) / fewer
    if not decoder:
        return JointCost(macs, _kept_bytes(counts, plan, dearest) / MACS_SECONDS)
    added = {depth: (decoder.macs([depth]), decoder.kept_bytes([depth])) for depth in plan.depths}
    macs += fmean(sum(added[depth][0] for depth in depths) for depths in blocks) / MACS_SECONDS
    heaviest = max(blocks, key=lambda each: blocks[each] * counts.kept.block + sum(added[depth][1] for depth in each))
    return JointCost(macs, (_kept_bytes(counts, plan, heaviest) + decoder.kept_bytes(heaviest)) / MACS_SECONDS)


def bytes_at_precisions(planned: PlannedModel, vocab_size: int) -> dict[str, int]:
    """Compute the bytes of the stored weights at each precision."""
    counts = counts_of(planned, vocab_size)
    decoder = _sums(counts, planned.plan, planned.decoder)
    return {precision: _stored_bytes(counts, planned.plan, precision, decoder) for precision in PRECISIONS}


def counts_of(planned: PlannedModel, vocab_size: int) -> ShapeCounts:
    """Find the counts of a model's shape and check that its plan fits it. Raises UserError."""
    spec, plan, decoder = planned.model, planned.plan, planned.decoder

    def count() -> ShapeCounts:
        from foldray.models.count import count_spec

        return count_spec(planned, vocab_size)

    with _fold_errors("fold"):
        FAMILIES[spec.family].check_plan(plan, decoder)
    if spec.checkpoint and ("://" in spec.checkpoint or spec.checkpoint[0] in "/.~" or _is_folder(spec.checkpoint)):
        counts = count()  # its configuration is read, and the plan checked against its number of layers
    else:
        counts = find_counts(shape_key(spec, vocab_size, decoder), count)
    with _fold_errors("fold"):
        counts.shape.check(plan.private, is_repeated=max(plan.uses()) > 1)
    if decoder and counts.decoder:
        with _fold_errors("fold.decoder"):
            counts.decoder.shape.check(decoder.private, is_repeated=max(decoder.uses()) > 1)
    return counts


@contextmanager
def _fold_errors(section: str) -> Iterator[None]:
    """Turn a ValueError about a plan into a UserError that names the field of the spec."""
    try:
        yield
    except ValueError as error:
        field, _, problem = str(error).partition(": ")
        raise UserError(f"{section}.{field}", problem) from None


def _is_folder(checkpoint: str) -> bool:
    return Path(checkpoint).is_dir()


def shape_key(spec: ModelSpec, vocab_size: int, decoder: FoldPlan | None = None) -> dict[str, object]:
    """Return everything that decides the shape of a spec's model, as JSON values."""
    key = {"family": spec.family, "config": spec.config, "vocab_size": vocab_size, "seconds": MACS_SECONDS}
    key |= {} if spec.window == "audio" else {"window": spec.window}
    return {**key, "decoder_layers": decoder.num_layers} if decoder else key


def costs_of(model: FoldedModel, depths: Sequence[int] = (), precision: str | None = None) -> list[DepthCost]:
    """Compute the cost of some depths of a folded model, of all planned ones by default, stored at a precision."""
    from foldray.models.count import count_config
    from foldray.models.fold import decoder_stack_of, stack_of

    fields = json.loads(model.config.to_json_string(use_diff=False))
    fields.pop(USUAL_SECONDS, None)
    key = {"class": type(model.config).__name__, "config": fields, "seconds": MACS_SECONDS}
    plan, decoder = stack_of(model).plan, decoder_stack_of(model)
    counts = find_counts(key, lambda: count_config(model.config))
    decoder_plan = None if decoder is None else decoder.plan
    return depth_costs(counts, plan, depths or plan.depths, precision or AS_IS, decoder_plan)


# --- Arithmetic ------------------------------------------------------------------------------------


def depth_costs(
    counts: ShapeCounts,
    plan: FoldPlan,
    depths: Sequence[int],
    precision: str = AS_IS,
    decoder: FoldPlan | None = None,
) -> list[DepthCost]:
    """Compute the cost of some depths, trained or not. Raises KeyError for a depth without a path."""
    more = _sums(counts, plan, decoder)
    unshared = counts.outside.params + counts.first_block.params - counts.block.params
    return [
        DepthCost(
            depth=depth,
            path=plan.path(depth),
            trained=depth in plan.depths,
            params_stored=_stored_params(counts, plan) + (more.private_params() if more else 0),
            params_private=private_params(plan, counts.shape, depth) + (more.private_params(depth) if more else 0),
            params_unrolled=unshared + depth * counts.block.params + (more.params_unrolled(depth) if more else 0),
            bytes_stored=_stored_bytes(counts, plan, precision, more),
            macs_per_audio_second=(_macs(counts, plan, [depth]) + (more.macs([depth]) if more else 0)) / MACS_SECONDS,
            decoder_path=more.path(depth) if more else None,
        )
        for depth in depths
    ]


def _sums(counts: ShapeCounts, plan: FoldPlan, decoder: FoldPlan | None) -> DecoderSums | None:
    if decoder is None:
        return None
    assert counts.decoder is not None
    return DecoderSums(counts.decoder, plan, decoder)


def _stored_params(counts: ShapeCounts, plan: FoldPlan) -> int:
    stock = counts.outside.params + counts.first_block.params + (plan.num_layers - 1) * counts.block.params
    return stock + private_params(plan, counts.shape)


def _stored_bytes(counts: ShapeCounts, plan: FoldPlan, precision: str, decoder: DecoderSums | None) -> int:
    parts = (counts.outside, counts.first_block, *[counts.block] * (plan.num_layers - 1))
    private = private_bytes(plan, counts.shape, precision) + (decoder.private_bytes(precision) if decoder else 0)
    return sum(part.bytes[precision] for part in parts) + private


def _macs(counts: ShapeCounts, plan: FoldPlan, depths: Sequence[int]) -> float:
    """Of one utterance in a pass over some depths."""
    prefixes = plan.prefixes(depths)
    private = len(private_applications(plan, prefixes)) * counts.shape.lora_macs(plan.private)
    return counts.macs.once + len(prefixes) * counts.macs.block + len(depths) * counts.macs.depth + private


def _kept_bytes(counts: ShapeCounts, plan: FoldPlan, depths: Sequence[int]) -> int:
    """Of one utterance in a pass over some depths."""
    prefixes = plan.prefixes(depths)
    private = private_applications(plan, prefixes)
    inputs = {prefix[:-1] for prefix in prefixes if len(prefix) > 1}
    statistics = {(prefix[-1], 0) for prefix in prefixes}
    if plan.private.statistics:
        statistics |= set(private.values())
    kept = counts.kept
    outside = kept.one_depth if len(depths) == 1 else kept.two_depths + (len(depths) - 2) * kept.further_depth
    inside = len(prefixes) * kept.block + len(inputs) * kept.state + len(statistics) * kept.statistics
    return outside + inside + 4 * len(private) * counts.shape.kept_numbers(plan.private)


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
