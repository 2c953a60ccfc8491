"""Rows of one batch at different depths: together as far as their paths agree, and out of the batch at their ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Path = tuple[int, ...]
State = tuple[Tensor, Any]
Ended = Callable[[Sequence[int], Tensor], None]
Advance = Callable[[Path, State, Any, Any], State]

SHARED = ("relative_position_embeddings",)
"""Arguments of blocks that are the same for all rows. The rotary ones of Wav2Vec2-Conformer have two rows, sines and
cosines, which a batch of two utterances could be mistaken for."""


@dataclass(frozen=True)
class _Group:
    """Rows that have run the same layers so far, and what their blocks are given."""

    rows: tuple[int, ...]
    prefix: Path
    state: State
    args: Any
    kwargs: dict[str, Any]


def run_rows(
    advance: Advance,
    paths: Sequence[Path],
    hidden_BTD: Tensor,
    args: Any,
    kwargs: dict[str, Any],
    carried: str | None = None,
    on_end: Ended | None = None,
) -> Tensor:
    """Run every row of a batch along a path of its own; a prefix that several rows share runs once, on all of them.

    Args:
        advance: Runs the last layer of a prefix on a pair of states and carried value.
        paths: The path of each row.
        hidden_BTD: Input states.
        args, kwargs: What every block is given; of what has B rows, a block gets those of the rows that it runs.
        carried: Keyword of the carried value, whose first axis holds B times something (WavLM: heads).
        on_end: Called with rows and their states (R, T, D) at the end of their path; shorter paths come first.

    Returns:
        States (B, T, D), in the order of the input.

    Raises:
        ValueError: The number of paths is not B.
    """
    if len(paths) != len(hidden_BTD):
        raise ValueError(f"row_depths: {len(paths)} depths for a batch of {len(hidden_BTD)}")
    ended: dict[int, Tensor] = {}
    start = (hidden_BTD, kwargs.get(carried or ""))
    todo = [_Group(tuple(range(len(paths))), (), start, args, kwargs)]
    while todo:
        group = todo.pop()
        for layer, numbers in _next_layers(group, paths):
            part = _part(group, numbers)
            if layer is None:
                ended.update(zip(part.rows, part.state[0], strict=True))
                if on_end:
                    on_end(part.rows, part.state[0])
                continue
            prefix = (*part.prefix, layer)
            state = advance(prefix, part.state, part.args, part.kwargs)
            todo.append(_Group(part.rows, prefix, state, part.args, part.kwargs))
    return torch.stack([ended[row] for row in range(len(paths))])


def _next_layers(group: _Group, paths: Sequence[Path]) -> list[tuple[int | None, list[int]]]:
    """The next layers of a group with the positions of their rows, None for rows at their end.

    Rows that end come first, and what holds the shortest path comes last: it is the next that the caller takes.
    """
    layers: dict[int | None, list[int]] = {}
    at = len(group.prefix)
    for position, row in enumerate(group.rows):
        path = paths[row]
        layers.setdefault(path[at] if at < len(path) else None, []).append(position)
    shortest = {layer: min(len(paths[group.rows[i]]) for i in found) for layer, found in layers.items()}
    return sorted(layers.items(), key=lambda item: (item[0] is not None, -shortest[item[0]]))


def _part(group: _Group, positions: Sequence[int]) -> _Group:
    """Some rows of a group, by their positions in it."""
    count = len(group.rows)
    if len(positions) == count:
        return group
    hidden_BTD, carried = group.state
    index = torch.tensor(positions, device=hidden_BTD.device)
    if isinstance(carried, Tensor):
        carried = carried.unflatten(0, (count, -1))[index].flatten(0, 1)
    return _Group(
        tuple(group.rows[position] for position in positions),
        group.prefix,
        (hidden_BTD[index], carried),
        rows_of(group.args, index, count),
        {name: value if name in SHARED else rows_of(value, index, count) for name, value in group.kwargs.items()},
    )


def rows_of(value: Any, own: slice | Tensor, rows: int) -> Any:
    """Some rows of whatever has that many; masks and positions may have a single one for all."""
    if isinstance(value, Tensor):
        return value[own] if value.ndim and len(value) == rows else value
    if isinstance(value, tuple):
        return tuple(rows_of(each, own, rows) for each in value)
    if isinstance(value, dict):
        return {name: rows_of(each, own, rows) for name, each in value.items()}
    return value
