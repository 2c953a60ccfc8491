"""Fold plans: which physical layers a depth runs, and the private parts of their uses. Pure Python."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Order = Literal["in_place", "cycle", "group"]


MOST_LAYERS = 1000
"""Layers of a path: far more than any model has, and few enough to be planned at once."""
MOST_RANK = 10_000


@dataclass(frozen=True)
class Private:
    """Private parts of every (layer, use) with use > 0; use 0 is the seed and has none.

    Attributes:
        norms: Scale and shift of every norm in the block.
        statistics: Mean and variance of every BatchNorm in the block, which are not parameters (arXiv 1812.08928,
            section 3.2, has them for each width).
        lora_rank: Rank of the low-rank term added to projections (arXiv 2106.09685); 0 for none.
        lora_on: Names of the projections, as in the block ("q_proj", "fc1"); empty for all of them.
        film: A scale and, if the projection has a bias, a shift of what each branch adds to the residual stream
            (arXiv 1709.07871).

    Raises:
        ValueError: A field is invalid; names it.
    """

    norms: bool = False
    statistics: bool = False
    lora_rank: int = 0
    lora_on: tuple[str, ...] = ()
    film: bool = False

    def __post_init__(self) -> None:
        names = (self.lora_on,) if isinstance(self.lora_on, str) else self.lora_on
        object.__setattr__(self, "lora_on", tuple(names))
        if not 0 <= self.lora_rank <= MOST_RANK:
            raise ValueError(f"lora_rank: use 0 for none, or 1 to {MOST_RANK}")
        if self.lora_on and not self.lora_rank:
            raise ValueError("lora_on: has no effect without LoRA; add lora to private")

    def __bool__(self) -> bool:
        return self.norms or self.statistics or self.film or self.lora_rank > 0

    def __str__(self) -> str:
        """As in result rows: `norms+lora8+film`, `lora8(q_proj,v_proj)`, or `none`."""
        on = f"({','.join(self.lora_on)})" if self.lora_on else ""
        parts = {
            "norms": self.norms,
            "statistics": self.statistics,
            f"lora{self.lora_rank}{on}": self.lora_rank,
            "film": self.film,
        }
        return "+".join(name for name, there in parts.items() if there) or "none"


@dataclass(frozen=True)
class FoldPlan:
    """Paths through `num_layers` physical layers, one for each logical depth.

    Attributes:
        num_layers: Number of physical layers, the blocks whose weights are stored.
        depths: Logical depths, ascending; the first is the seed and equals `num_layers`.
        order: `in_place` repeats a layer next to itself (0 0 1 1 2 2, the order of arXiv 2505.21237); `cycle` repeats
            the whole stack (0 1 2 0 1 2); `group` cycles inside each of `groups`. If the depth is not a multiple of
            the layers, the extra repeats go to the last layers (in place: 8 -> 12 is 0 1 2 3 4 4 5 5 6 6 7 7), the
            last groups, or, for `cycle`, the first layers of one more turn (3 -> 4 is 0 1 2 0).
        keep_first, keep_last: Number of layers at either end that every depth uses once.
        groups: For `group`, sizes of the consecutive groups that cycle; they add up to the shared layers.
        paths: Explicit paths, one for each depth, instead of an order.
        private: Private parts of each repeated use of a layer.

    Raises:
        ValueError: There is no such plan; names the field.

    Example:
        >>> FoldPlan(num_layers=8, depths=(8, 12)).path(12)
        (0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7)
    """

    num_layers: int
    depths: tuple[int, ...]
    order: Order = "in_place"
    keep_first: int = 0
    keep_last: int = 0
    groups: tuple[int, ...] = ()
    paths: tuple[tuple[int, ...], ...] = field(default=())
    private: Private = field(default=Private())

    def __post_init__(self) -> None:
        for name in ("depths", "groups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "paths", tuple(tuple(path) for path in self.paths))
        self._check_counts()
        if self.paths:
            self._check_paths()

    def _check_counts(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"num_layers: must be 1 or more, not {self.num_layers}")
        if self.num_layers > MOST_LAYERS or any(depth > MOST_LAYERS for depth in self.depths):
            raise ValueError(f"depths: use at most {MOST_LAYERS}")
        if not self.depths or list(self.depths) != sorted(set(self.depths)):
            raise ValueError(f"depths: {list(self.depths)} must ascend without repeats")
        if self.depths[0] != self.num_layers:
            raise ValueError(
                f"depths: the first depth is the seed and must equal num_layers = {self.num_layers}, "
                f"not {self.depths[0]}"
            )
        if self.order not in get_args(Order):
            raise ValueError(f"order: '{self.order}' must be one of {', '.join(get_args(Order))}")
        if self.keep_first < 0 or self.keep_last < 0:
            raise ValueError("keep_first and keep_last: use 0 or more")
        shared = self.num_layers - self.keep_first - self.keep_last
        if shared < 1 and len(self.depths) > 1:
            raise ValueError(f"keep_first + keep_last: leave at least one of {self.num_layers} layers to share")
        if (
            self.order == "group"
            and not self.paths
            and (sum(self.groups) != shared or any(size < 1 for size in self.groups))
        ):
            raise ValueError(f"groups: sizes {list(self.groups)} must be positive and add up to {shared} layers")
        if self.order != "group" and self.groups:
            raise ValueError("groups: only the order 'group' has groups; set order=group or drop them")

    def _check_paths(self) -> None:
        if tuple(len(path) for path in self.paths) != self.depths:
            raise ValueError(f"paths: their lengths must be the depths {list(self.depths)}")
        if self.paths[0] != tuple(range(self.num_layers)):
            raise ValueError(f"paths: the first path is the seed and must run 0 to {self.num_layers - 1} in order")
        for path in self.paths:
            if not set(path) <= set(range(self.num_layers)):
                raise ValueError(f"paths: {list(path)} names a layer outside 0 to {self.num_layers - 1}")

    def path(self, depth: int) -> tuple[int, ...]:
        """Get the physical layers of one depth in the order they run.

        Args:
            depth: Any depth from `num_layers` on, trained or not; with explicit `paths` only a planned one.

        Raises:
            KeyError: The depth has no path.
        """
        if self.paths:
            if depth not in self.depths:
                raise KeyError(f"depth {depth} has no path; only {list(self.depths)} have one")
            return self.paths[self.depths.index(depth)]
        if depth > MOST_LAYERS:
            raise KeyError(f"depth {depth} has no path; use at most {MOST_LAYERS}")
        if depth < self.num_layers:
            raise KeyError(f"depth {depth} is shallower than the seed, {self.num_layers}")
        if depth > self.num_layers and self.keep_first + self.keep_last >= self.num_layers:
            raise KeyError(f"depth {depth} has no path; every layer is kept, none is shared")
        end = self.num_layers - self.keep_last
        shared = tuple(range(self.keep_first, end))
        middle = self._unfold(shared, depth - self.keep_first - self.keep_last)
        return (*range(self.keep_first), *middle, *range(end, self.num_layers))

    def prefixes(self, depths: Sequence[int]) -> set[tuple[int, ...]]:
        """Get the distinct prefixes of the paths of some depths; one pass over these depths computes each once."""
        return {path[:end] for path in map(self.path, depths) for end in range(1, len(path) + 1)}

    def uses(self, depths: Sequence[int] | None = None) -> tuple[int, ...]:
        """Count how often each physical layer runs on the path that runs it most, of the planned depths by default."""
        counts = [Counter(self.path(depth)) for depth in depths or self.depths]
        return tuple(max(count[layer] for count in counts) for layer in range(self.num_layers))

    def _unfold(self, layers: tuple[int, ...], length: int) -> tuple[int, ...]:
        if not layers:
            return ()
        if self.order == "in_place":
            return _in_place(layers, length)
        if self.order == "cycle":
            return tuple(layers[i % len(layers)] for i in range(length))
        return self._in_groups(layers, length)

    def _in_groups(self, layers: tuple[int, ...], length: int) -> tuple[int, ...]:
        """Every group gets as many whole turns as fit; the remainder goes to layers from the last group backwards."""
        turns, rest = divmod(length, len(layers))
        path: list[int] = []
        end = len(layers)
        for size in reversed(self.groups):
            group = layers[end - size : end]
            extra = min(rest, size)
            path = [*group * turns, *group[:extra], *path]
            rest -= extra
            end -= size
        return tuple(path)

    def all_paths(self) -> tuple[tuple[int, ...], ...]:
        """List all paths, shallowest first."""
        return tuple(self.path(depth) for depth in self.depths)


def _in_place(layers: Sequence[int], length: int) -> tuple[int, ...]:
    repeats, extra = divmod(length, len(layers))
    first_extra = len(layers) - extra
    return tuple(layer for i, layer in enumerate(layers) for _ in range(repeats + (1 if i >= first_extra else 0)))


def check_chosen(layers: Sequence[int], num_layers: int, available: int = MOST_LAYERS) -> None:
    """Check the numbers of the layers, of `available` ones, that `num_layers` physical ones are made from.

    Raises ValueError, without a field.
    """
    numbers = list(layers)
    if numbers != sorted(set(numbers)) or not all(0 <= number < available for number in numbers):
        limit = f"up to {available - 1}, the checkpoint's last layer" if available < MOST_LAYERS else "from 0"
        raise ValueError(f"{numbers} must be ascending numbers {limit}")
    if len(numbers) < num_layers:
        raise ValueError(f"{numbers} are fewer than num_layers = {num_layers}; add some, or lower that")


def check_pairs(encoder: FoldPlan, decoder: FoldPlan) -> None:
    """Check that a decoder's plan has one depth for each of the encoder's, or a single one for all.

    Raises ValueError naming the field.
    """
    if len(decoder.depths) not in (1, len(encoder.depths)):
        raise ValueError(
            f"decoder.depths: {list(decoder.depths)} must have one depth for each of the encoder's "
            f"{list(encoder.depths)}, or a single one for all"
        )


def decoder_depth(encoder: FoldPlan, decoder: FoldPlan, depth: int) -> int:
    """Get the depth that a decoder runs with a depth of the encoder: the one at its position, or the only one.

    Raises KeyError for a depth of the encoder that is not planned, unless one decoder path serves all.
    """
    if len(decoder.depths) == 1:
        return decoder.depths[0]
    if depth not in encoder.depths:
        planned = ", ".join(map(str, encoder.depths))
        raise KeyError(f"depth {depth} is not planned; with its decoder this model runs at {planned}")
    return decoder.depths[encoder.depths.index(depth)]
