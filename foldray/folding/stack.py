"""`FoldedStack`: the only "layer" of a folded encoder. It runs every path and stacks their outputs.

transformers' speech encoders all run `for layer in self.layers: hidden = layer(hidden, …)`. A
`FoldedStack` takes the place of `self.layers` and, when iterated, offers itself as the single layer.
So no forward of the library is copied: front end, features and masks before the loop are computed
once, and what follows the loop (last norm, CTC head) runs once over all paths.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foldray.plan import FoldPlan


class FoldedStack(nn.ModuleList):
    """Physical layers under their stock names ("0", "1", …), run along the paths of a plan.

    Because the names are the stock ones, the state dict of a folded model is a valid stock
    checkpoint of its seed. `run_depths` chooses which depths a forward pass runs; all by default.
    """

    def __init__(self, layers: Iterable[nn.Module], plan: FoldPlan) -> None:
        super().__init__(layers)
        if len(self) != plan.num_layers:
            raise ValueError(f"the plan folds {plan.num_layers} layers, the model has {len(self)}")
        self.plan = plan
        self.run_depths = plan.depths

    def __iter__(self) -> Iterator[nn.Module]:
        yield self

    # ModuleList's own repr iterates, which here would never end.
    __repr__ = nn.Module.__repr__

    def physical_layers(self) -> list[nn.Module]:
        """The stored blocks, in order."""
        return [self[i] for i in range(len(self))]

    def forward(self, hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run each depth of `run_depths`; a prefix that two paths share is computed once.

        hidden_BTD: (B, T, D). Returns (P*B, T, D): all of the first depth's utterances, then the
        next depth's. Further arguments (masks, positions) go to every block as they are.
        """
        paths = [self.plan.path(depth) for depth in self.run_depths]
        reached: dict[tuple[int, ...], Tensor] = {(): hidden_BTD}
        outputs = []
        for i, path in enumerate(paths):
            for length in range(1, len(path) + 1):
                prefix = path[:length]
                if prefix not in reached:
                    reached[prefix] = self[prefix[-1]](reached[prefix[:-1]], *args, **kwargs)
            outputs.append(reached[path])
            # Only what a later path starts from stays, so that inference holds few activations.
            later = paths[i + 1 :]
            reached = {
                prefix: hidden
                for prefix, hidden in reached.items()
                if any(other[: len(prefix)] == prefix for other in later)
            }
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
