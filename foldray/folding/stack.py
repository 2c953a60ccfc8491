"""`FoldedStack`: the only "layer" of a folded encoder. It runs every path and stacks their outputs.

transformers' speech encoders all run `for layer in self.layers: hidden = layer(hidden, …)`. A
`FoldedStack` takes the place of `self.layers` and, when iterated, offers itself as the single layer.
So no forward of the library is copied: front end, features and masks before the loop are computed
once, and what follows the loop (last norm, CTC head) runs once over all paths.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foldray.folding.plan import FoldPlan
from foldray.folding.private import USE, add_private_parts, block_shape
from foldray.folding.rows import Ended, run_rows


def check_layers(blocks: Sequence[nn.Module], plan: FoldPlan) -> None:
    """Check that a plan fits the blocks. Raises ValueError naming the field."""
    if len(blocks) != plan.num_layers:
        raise ValueError(f"num_layers: the plan folds {plan.num_layers} layers, the model has {len(blocks)}")
    block_shape(blocks[0]).check(plan.private, is_repeated=max(plan.uses()) > 1)


class FoldedStack(nn.ModuleList):
    """Physical layers under their stock names ("0", "1", …), run along the paths of a plan.

    Because the names are the stock ones, the state dict of a folded model without its private parts
    is a valid stock checkpoint of its seed.

    Args:
        layers: The stock blocks.
        plan: The fold plan.
        carried: Keyword in which blocks pass something on besides the hidden states (WavLM's position bias).

    Attributes:
        run_depths: The depths that a forward pass runs; all planned ones by default.
        row_depths: The depth of each row of the batch, instead of `run_depths`: rows run together as far as their
            paths agree. For inference.
        on_end: Called with the numbers of rows that reached their depth and their states, before others go on.
        substitute: States that the next forward pass returns instead of running any block.
        keep_output: Whether to keep the last hidden states for `take_output`.

    Raises:
        ValueError: The plan does not fit the blocks; names the field.
    """

    def __init__(self, layers: Iterable[nn.Module], plan: FoldPlan, carried: str | None = None) -> None:
        blocks = list(layers)
        check_layers(blocks, plan)
        super().__init__(blocks)
        self.plan = plan
        self.run_depths = plan.depths
        self.row_depths: Sequence[int] | None = None
        self.on_end: Ended | None = None
        self.substitute: Tensor | None = None
        self.keep_output = False
        self._output: Tensor | None = None
        self._carried = carried
        self._uses = plan.uses()
        for block, uses in zip(self.physical_layers(), self._uses, strict=True):
            add_private_parts(block, plan.private, uses)

    def __iter__(self) -> Iterator[nn.Module]:
        yield self

    # ModuleList's own repr iterates, which here would never end.
    __repr__ = nn.Module.__repr__

    def physical_layers(self) -> list[nn.Module]:
        """The stored blocks, in order."""
        return [self[i] for i in range(len(self))]

    def forward(self, hidden_BTD: Tensor, /, *args: Any, **kwargs: Any) -> Any:
        """Run each depth of `run_depths`; a prefix that several paths share is computed once.

        Args:
            hidden_BTD: Input states (B, T, D).
            args, kwargs: Masks, positions and so on, passed to every block.

        Returns:
            States (P*B, T, D): all utterances at the first depth, then all at the next; (B, T, D) with `row_depths`.
            With `carried`, a pair of them and the carried value.

        Raises:
            ValueError: `row_depths` are not as many as the rows.
        """
        if self.substitute is not None:
            substitute, self.substitute = self.substitute, None
            return (substitute, None) if self._carried else substitute
        if self.row_depths is not None:
            paths = [self.plan.path(depth) for depth in self.row_depths]
            ended_BTD = run_rows(self._advance, paths, hidden_BTD, args, kwargs, self._carried, self.on_end)
            return (ended_BTD, None) if self._carried else ended_BTD
        paths = [self.plan.path(depth) for depth in self.run_depths]
        reached: dict[tuple[int, ...], tuple[Tensor, Any]] = {(): (hidden_BTD, kwargs.get(self._carried or ""))}
        ends = []
        for i, path in enumerate(paths):
            for length in range(1, len(path) + 1):
                prefix = path[:length]
                if prefix not in reached:
                    reached[prefix] = self._advance(prefix, reached[prefix[:-1]], args, kwargs)
            ends.append(reached[path])
            # Keep only states that a later path starts from, so that inference holds few activations.
            later = paths[i + 1 :]
            reached = {
                prefix: state
                for prefix, state in reached.items()
                if any(other[: len(prefix)] == prefix for other in later)
            }
        hidden_NTD = torch.cat([hidden for hidden, _ in ends]) if len(ends) > 1 else ends[0][0]
        self._output = hidden_NTD if self.keep_output else None
        return (hidden_NTD, ends[-1][1]) if self._carried else hidden_NTD

    def take_output(self) -> Tensor:
        """Return the states of the last forward pass, (P*B, T, D), and forget them: they hold its whole graph."""
        assert self._output is not None
        output, self._output = self._output, None
        return output

    def _advance(
        self, prefix: tuple[int, ...], state: tuple[Tensor, Any], args: Any, kwargs: Any
    ) -> tuple[Tensor, Any]:
        """One application of the prefix's last layer."""
        layer = prefix[-1]
        hidden_BTD, carried = state
        if self.plan.private and self._uses[layer] > 1:
            # A depth deeper than the trained ones has no parts for its further uses: it runs the last ones.
            kwargs = {**kwargs, USE: str(min(prefix[:-1].count(layer), self._uses[layer] - 1))}
        if self._carried is None:
            return self[layer](hidden_BTD, *args, **kwargs), None
        hidden_BTD, carried = self[layer](hidden_BTD, *args, **{**kwargs, self._carried: carried})
        return hidden_BTD, carried


def number_caches(block: nn.Module, position: int) -> None:
    """Let the attention of a block use the key-value cache of its position on the path, as in a stock model."""
    for module in block.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = position  # type: ignore[assignment]
