"""Sums over a fold plan: weights and private parts of a stack, and what a folded decoder adds. No torch."""

import math
from collections.abc import Sequence

from foldray.folding.block_shape import BlockShape, numbers
from foldray.folding.plan import FoldPlan, decoder_depth
from foldray.models.shape_counts import DecoderCounts

# --- Private parts ---------------------------------------------------------------------------------


def private_params(plan: FoldPlan, shape: BlockShape, depth: int | None = None) -> int:
    """Count the parameters of the private parts: of all planned depths, or those of them that one depth runs."""
    return _repeats(plan, depth) * numbers(shape.parameters(plan.private))


def private_bytes(plan: FoldPlan, shape: BlockShape, precision: str) -> int:
    """Count the bytes of all private parts stored at a precision."""
    floats = [*shape.parameters(plan.private), *shape.statistics(plan.private)]
    return _repeats(plan) * (
        sum(bytes_at(each, precision) for each in floats) + 8 * numbers(shape.counters(plan.private))
    )


def _repeats(plan: FoldPlan, depth: int | None = None) -> int:
    """Uses with private parts: of all planned depths, or those of them that one depth runs."""
    stored = plan.uses()
    run = stored if depth is None else plan.uses([depth])
    return sum(max(0, min(pair) - 1) for pair in zip(stored, run, strict=True))


def bytes_at(shape: tuple[int, ...], precision: str) -> int:
    """Compute the bytes of one float32 tensor stored at a precision."""
    if precision == "int8" and sum(size > 1 for size in shape) > 1:  # as int8.is_quantised
        return math.prod(shape) + 4 * shape[0]
    return math.prod(shape) * (2 if precision == "bfloat16" else 4)


def private_applications(plan: FoldPlan, prefixes: set[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, int]]:
    """Get the applications of a block that run private parts, and which (layer, use) each one runs."""
    if not plan.private:
        return {}
    uses = plan.uses()
    applications = {prefix: (prefix[-1], prefix[:-1].count(prefix[-1])) for prefix in prefixes}
    return {
        prefix: (layer, min(use, uses[layer] - 1))
        for prefix, (layer, use) in applications.items()
        if use and uses[layer] > 1
    }


# --- Folded decoders -------------------------------------------------------------------------------


class DecoderSums:
    """What a folded decoder adds to counts that include its physical layers, once for each depth that runs.

    Args:
        counts: Counts of its blocks.
        encoder, plan: The plans of encoder and decoder.
    """

    def __init__(self, counts: DecoderCounts, encoder: FoldPlan, plan: FoldPlan) -> None:
        self._counts, self._encoder, self._plan = counts, encoder, plan

    def path(self, depth: int) -> tuple[int, ...]:
        """Get the path that a depth of the encoder runs in the decoder."""
        return self._plan.path(self._depth(depth))

    def private_params(self, depth: int | None = None) -> int:
        """Count private parameters: all of them, or those that a depth of the encoder runs."""
        return private_params(self._plan, self._counts.shape, None if depth is None else self._depth(depth))

    def params_unrolled(self, depth: int) -> int:
        """Count the parameters that an unshared decoder has more."""
        return self._more_blocks(depth) * self._counts.block.params

    def private_bytes(self, precision: str) -> int:
        """Count the bytes of all private parts stored at a precision."""
        return private_bytes(self._plan, self._counts.shape, precision)

    def macs(self, depths: Sequence[int]) -> float:
        """Count the multiply-accumulates for one utterance, in a pass over some depths of the encoder."""
        merged = self._counts.shape.lora_macs(self._plan.private)
        return sum(
            self._more_blocks(depth) * self._counts.macs + self._private_applications(depth) * merged
            for depth in depths
        )

    def kept_bytes(self, depths: Sequence[int]) -> int:
        """Count the bytes that such a pass keeps for backward."""
        numbers_kept = self._counts.shape.kept_numbers(self._plan.private)
        apart = len(depths) - 1 if len(self._plan.depths) > 1 else 0  # one path for all runs them together
        return apart * self._plan.num_layers * self._counts.kept_once + sum(
            self._more_blocks(depth) * self._counts.kept + self._private_applications(depth) * 4 * numbers_kept
            for depth in depths
        )

    def _depth(self, depth: int) -> int:
        return decoder_depth(self._encoder, self._plan, depth)

    def _more_blocks(self, depth: int) -> int:
        return self._depth(depth) - self._plan.num_layers

    def _private_applications(self, depth: int) -> int:
        return len(private_applications(self._plan, self._plan.prefixes([self._depth(depth)])))
