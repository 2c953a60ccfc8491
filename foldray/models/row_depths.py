"""One batch of utterances at several depths, each answered as soon as its depth is reached."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foldray.folding.rows import Ended
from foldray.models.families import family_of
from foldray.models.fold import ctc_logits, set_depths, stack_of

OnLogits = Callable[[Sequence[int], Tensor], None]


@contextmanager
def row_depths(model: nn.Module, depths: Sequence[int], on_end: Ended | None = None) -> Iterator[None]:
    """Run a depth for each row of the batch while a block runs, instead of the depths that are set.

    Rows that share the beginning of their paths run it together. For inference on one batch of as many rows; a folded
    decoder keeps its depths.

    Args:
        model: A folded model.
        depths: The depth of each row, trained or not.
        on_end: Called with rows and their states at the end of their path, shallow depths first.

    Raises:
        UserError: A depth has no path.

    Example:
        >>> with row_depths(model, [12, 6, 6]):
        ...     model(audio_BT).logits.shape
        torch.Size([3, 499, 32])
    """
    stack = stack_of(model)
    before = stack.run_depths
    for depth in set(depths):
        set_depths(model, depth)
    set_depths(model, before)
    stack.row_depths, stack.on_end = tuple(depths), on_end
    try:
        yield
    finally:
        stack.row_depths = stack.on_end = stack.substitute = None


@torch.no_grad()
def ctc_by_row(
    model: nn.Module, inputs: dict[str, Tensor], depths: Sequence[int], shortest: dict[str, Tensor], on_logits: OnLogits
) -> None:
    """Compute the CTC logits of a batch with a depth for each row, and hand each row out when its depth is reached.

    What follows the blocks (the last norm, the head) belongs to the library's forward pass, which ends once. So rows
    that end early go through another pass, over a very short clip whose states they replace.

    Args:
        model: A folded model with CTC.
        inputs: What the model takes, B utterances.
        depths: The depth of each utterance.
        shortest: Inputs of one short clip.
        on_logits: Called with row numbers and their logits (R, T, V), until every row has been there once.
    """
    stack = stack_of(model)
    deepest = max(len(stack.plan.path(depth)) for depth in depths)
    early = family_of(model).ends_early
    left = set(range(len(depths)))

    def end(rows: Sequence[int], hidden_RTD: Tensor) -> None:
        if not early or depths[rows[0]] == deepest:
            return
        stack.substitute = hidden_RTD
        on_logits(rows, ctc_logits(forward(**shortest)))
        left.difference_update(rows)

    forward: Any = model
    with row_depths(model, depths, end):
        logits_BTV = ctc_logits(forward(**inputs))
        rest = sorted(left)
        on_logits(rest, logits_BTV[rest])
