"""The shape of one block: what private parts it can have and what they cost. Pure Python; plans are checked by it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from foldray.folding.plan import Private

BRANCH_ENDS = ("out_proj", "o_proj", "linear_out", "output_dense", "linear2", "fc2", "pointwise_conv2")
"""Names of the projections that write to the residual stream, in the blocks of transformers."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Projection:
    """A matrix product in a block: a linear layer, or a convolution over single frames.

    Attributes:
        name: The last part of its path in the block, such as "q_proj".
        outputs, inputs: Sizes of its matrix.
        bias: Whether it has a bias.
        keeps_weight: Whether a weight computed for one use is kept for backward; not if its input needs no gradient.
    """

    name: str
    outputs: int
    inputs: int
    bias: bool
    keeps_weight: bool = True

    def takes_lora(self, private: Private) -> bool:
        """Whether private low-rank terms are added to this projection."""
        if not private.lora_rank:
            return False
        if private.lora_on:
            return self.name in private.lora_on
        # A rank that is no lower than the matrix's own would cost more than a private matrix.
        return private.lora_rank < min(self.outputs, self.inputs)

    def takes_film(self, private: Private) -> bool:
        """Whether a private scale and shift is applied to this projection."""
        return private.film and self.name in BRANCH_ENDS


@dataclass(frozen=True)
class Norm:
    """A norm in a block: shapes of its parameters, and of a BatchNorm's statistics (floats) and counters (integers)."""

    parameters: tuple[Shape, ...]
    statistics: tuple[Shape, ...] = ()
    counters: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class BlockShape:
    """Projections and norms of a block, in the order of its modules; kind: its class."""

    kind: str
    projections: tuple[Projection, ...]
    norms: tuple[Norm, ...]

    def check(self, private: Private, is_repeated: bool) -> None:
        """Check that private parts fit the block.

        Args:
            private: The requested parts.
            is_repeated: Whether any block runs more than once, so that there are parts at all.

        Raises:
            ValueError: A projection does not exist, a rank is too high or nothing takes the parts; names the field.
        """
        sizes = {each.name: min(each.outputs, each.inputs) for each in self.projections}
        for name in private.lora_on:
            if name not in sizes:
                raise ValueError(f"lora_on: a block has no projection '{name}'; it has {', '.join(sorted(sizes))}")
            if private.lora_rank >= sizes[name]:
                raise ValueError(
                    f"lora_rank: {private.lora_rank} is not a valid LoRA rank for '{name}'; use less than {sizes[name]}"
                )
        if private.statistics and not any(norm.statistics for norm in self.norms):
            raise ValueError("private: 'statistics' needs a BatchNorm, and this model's blocks have none")
        largest = max(sizes.values(), default=0)
        if private.lora_rank and private.lora_rank >= largest:
            raise ValueError(
                f"lora_rank: {private.lora_rank} is not a valid LoRA rank for any projection; use less than {largest}"
            )
        if private and is_repeated and not (self.parameters(private) or self.statistics(private)):
            raise ValueError(f"private: {self.kind} has no module that '{private}' applies to")

    def parameters(self, private: Private) -> list[Shape]:
        """List the shapes of the private parameters of one use."""
        shapes = [shape for norm in self.norms if private.norms for shape in norm.parameters]
        for each in self.projections:
            if each.takes_lora(private):
                shapes += [(private.lora_rank, each.inputs), (each.outputs, private.lora_rank)]
            if each.takes_film(private):
                shapes += [(each.outputs,)] * (2 if each.bias else 1)
        return shapes

    def statistics(self, private: Private) -> list[Shape]:
        """List the shapes of the private statistics of one use."""
        return [shape for norm in self.norms if private.statistics for shape in norm.statistics]

    def counters(self, private: Private) -> list[Shape]:
        """List the shapes of the private step counters of one use, which are 64-bit integers."""
        return [shape for norm in self.norms if private.statistics for shape in norm.counters]

    def lora_macs(self, private: Private) -> int:
        """Count the multiply-accumulates that merge the low-rank terms of one use into its weights."""
        return sum(private.lora_rank * p.outputs * p.inputs for p in self.projections if p.takes_lora(private))

    def kept_numbers(self, private: Private) -> int:
        """Count the numbers that one use with private parts keeps for backward besides those of a stock block."""
        kept = 0
        for each in self.projections:
            lora, film = each.takes_lora(private), each.takes_film(private)
            matrix = each.outputs * each.inputs
            if (lora or film) and each.keeps_weight:
                kept += matrix
            if film:  # its product keeps the scale, for weight and bias, and a merged weight
                kept += each.outputs * (2 if each.bias else 1) + (matrix if lora else 0)
        return kept


def numbers(shapes: Iterable[Shape]) -> int:
    """Count the numbers in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes)
