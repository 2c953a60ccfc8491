"""What one shape of stock model costs, counted once: in the wheel for shipped recipes, in the user's cache for others.

`foldray plan` combines these counts with a fold plan and so needs neither torch nor transformers. Write the shipped
file with `python -m foldray.models.count`; a test recounts it.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foldray.folding.block_shape import BlockShape, Norm, Projection

PRECISIONS = ("float32", "bfloat16", "int8")
AS_IS = "stored"
"""Key of the bytes of weights as they are."""
SHIPPED_FILE = "shape_counts.json"


@dataclass(frozen=True)
class Weights:
    """Parameters of a part of a model, and the bytes of all its tensors as they are and at each precision."""

    params: int
    bytes: dict[str, int]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates for one utterance: once a pass, for each application of a block, for each depth."""

    once: float
    block: float
    depth: float


@dataclass(frozen=True)
class KeptBytes:
    """Bytes of activations that one pass over an utterance keeps for backward.

    Attributes:
        one_depth: Outside the blocks, when the pass runs one depth.
        two_depths: Outside the blocks, when the pass runs two depths.
        further_depth: Outside the blocks, for each depth beyond two.
        block: Each time a block is applied, not counting its input.
        state: One hidden state that feeds a block, counted once however many blocks it feeds; the stack's own input is
            not counted.
        statistics: Each set of BatchNorm statistics of a block.
    """

    one_depth: int
    two_depths: int
    further_depth: int
    block: int
    state: int
    statistics: int


@dataclass(frozen=True)
class DecoderCounts:
    """What one more block of a decoder adds. Each depth runs its own, whatever the other depths run.

    Attributes:
        block: Its weights.
        macs: Multiply-accumulates of one application for one utterance.
        kept: Bytes kept for backward by one application, its input included.
        kept_once: Those of them that a stock decoder keeps once for all depths, such as rotations by position.
        shape: Its projections and norms.
    """

    block: Weights
    macs: float
    kept: int
    kept_once: int
    shape: BlockShape


@dataclass(frozen=True)
class ShapeCounts:
    """Counts of one stock model shape, for any number of blocks and any fold plan.

    Attributes:
        outside: Weights outside the blocks; those of a decoder are outside.
        first_block, block: Weights of the first block and of any other one.
        macs, kept: Of an utterance of `MACS_SECONDS`.
        shape: Projections and norms of a block.
        decoder: Of a decoder that can be folded; None where there is none.
    """

    outside: Weights
    first_block: Weights
    block: Weights
    macs: Macs
    kept: KeptBytes
    shape: BlockShape
    decoder: DecoderCounts | None = None


def find_counts(key: Mapping[str, object], count: Callable[[], ShapeCounts]) -> ShapeCounts:
    """Find the counts of a shape: shipped, in the user's cache, or else from `count`, whose result is cached.

    Args:
        key: Everything that decides the shape, as JSON values.
        count: Counts the shape; imports torch.
    """
    digest = _digest(key)
    return _shipped().get(digest) or _cached(digest) or _keep(digest, count())


def _digest(key: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


@functools.cache
def _shipped() -> dict[str, ShapeCounts]:
    file = resources.files("foldray.models").joinpath(SHIPPED_FILE)
    return {digest: _from_json(entry) for digest, entry in json.loads(file.read_text()).items()}


_COUNTED: dict[str, ShapeCounts] = {}
"""Counts of this process, also if they can't be cached."""


def _cached(digest: str) -> ShapeCounts | None:
    if digest not in _COUNTED:
        try:
            _COUNTED[digest] = _from_json(json.loads(_cache_file(digest).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return _COUNTED[digest]


def _keep(digest: str, counts: ShapeCounts) -> ShapeCounts:
    _COUNTED[digest] = counts
    file = _cache_file(digest)
    part = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(asdict(counts)))
        part.replace(file)
    except OSError:  # a read-only home: counted again the next time
        pass
    return counts


def _cache_file(digest: str) -> Path:
    """Named after everything besides the shape that the counts depend on: the libraries and our counter's code."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "foldray")
    counter = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("count.py", "count_model.py"))
    versions = [version("torch"), version("transformers"), hashlib.sha256(counter).hexdigest()]
    return folder / f"{_digest({'shape': digest, 'versions': versions})}.json"


def _from_json(values: dict[str, Any]) -> ShapeCounts:
    decoder = values.get("decoder")  # only models whose decoder can be folded have one
    return ShapeCounts(
        **{name: Weights(**values[name]) for name in ("outside", "first_block", "block")},
        macs=Macs(**values["macs"]),
        kept=KeptBytes(**values["kept"]),
        shape=_shape_from_json(values["shape"]),
        decoder=decoder
        and DecoderCounts(
            **{**decoder, "block": Weights(**decoder["block"]), "shape": _shape_from_json(decoder["shape"])}
        ),
    )


def _shape_from_json(shape: dict[str, Any]) -> BlockShape:
    return BlockShape(
        shape["kind"],
        tuple(Projection(**each) for each in shape["projections"]),
        tuple(Norm(**{name: tuple(map(tuple, shapes)) for name, shapes in each.items()}) for each in shape["norms"]),
    )


def write_shipped(entries: Sequence[tuple[Mapping[str, object], ShapeCounts]]) -> None:
    """Write the shipped file from keys and counts."""
    counted = {_digest(key): asdict(counts) for key, counts in entries}
    lines = [f"{json.dumps(digest)}: {json.dumps(counts)}" for digest, counts in sorted(counted.items())]
    Path(__file__).with_name(SHIPPED_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n")
