"""Packing utterances into micro-batches: greedy, and vectorised over all windows of an epoch at once."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def pack(lengths: Ints, bounds: Ints, longest: int) -> Ints:
    """Pack utterances greedily, in order, inside each stretch between bounds.

    All stretches are packed at once, one utterance of each at a time.

    Args:
        lengths: Samples of each utterance, (N,).
        bounds: Where each stretch begins, and N, (S + 1,).
        longest: Most samples of padded audio in a micro-batch.

    Returns:
        Where each micro-batch begins, and N, (M + 1,).
    """
    sizes = np.diff(bounds)
    by_size = np.argsort(-sizes, kind="stable")
    first, sizes = bounds[:-1][by_size], sizes[by_size]
    opens = np.zeros(len(lengths), dtype=bool)
    widest, count = np.zeros_like(first), np.zeros_like(first)
    for turn in range(int(sizes[0])):
        active = int(np.searchsorted(-sizes, -turn, side="left"))
        place = first[:active] + turn
        length = lengths[place]
        padded = np.maximum(widest[:active], length)
        full = (padded * (count[:active] + 1) > longest) | (count[:active] == 0)
        opens[place[full]] = True
        widest[:active] = np.where(full, length, padded)
        count[:active] = np.where(full, 1, count[:active] + 1)
    return np.append(np.flatnonzero(opens), len(lengths))


def sorted_within(keys: npt.NDArray[np.float64], bounds: Ints) -> Ints:
    """The order (N,) that sorts keys (N,) inside each stretch between bounds (S + 1,)."""
    number = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    # One stable sort of one key: three times as fast as lexsort on ten million, and equal on every machine.
    order: Ints = np.argsort(number * (float(keys.max()) + 1.0) + keys, kind="stable")
    return order


def ranges(starts: Ints, sizes: Ints) -> Ints:
    """The numbers start … start + size - 1 of each pair of start and size, concatenated."""
    if not len(sizes):
        return np.zeros(0, dtype=np.int64)
    before = np.cumsum(sizes) - sizes
    numbers: Ints = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
    return numbers


def bounds_of(sizes: Ints) -> Ints:
    """Where parts of these sizes begin when concatenated, and the end, (S + 1,)."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
