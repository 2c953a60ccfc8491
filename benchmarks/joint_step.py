"""`python -m benchmarks joint-step`: a joint training step against the deepest path alone, on wav2vec2-base shapes.

The peer is training without a fold: a forward and backward pass for each depth, front end included. Both train the
same weights on the same audio with CTC, in float32. Steps of all kinds alternate, so that a machine that slows down
slows all of them; the ratio is that of the medians.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import BenchmarkResult
from foldray.config.corpus import SAMPLE_RATE
from foldray.folding.loss import StepCounts, joint_loss
from foldray.folding.plan import FoldPlan, Order
from foldray.models.families import transformers_class
from foldray.models.features import output_frames
from foldray.models.fold import fold, set_depths

LAYERS, DEPTH = 8, 12
ORDERS: tuple[Order, ...] = ("cycle", "in_place")
BATCH, SECONDS = 2, 6.0


def bench_joint_step(
    rounds: int = 5, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> BenchmarkResult:
    """Median seconds of a step of each kind, and their ratios to the deepest path alone."""
    kinds: list[Callable[[], None]] = []
    names: list[str] = []
    for order in ORDERS:
        plan = FoldPlan(LAYERS, (LAYERS, DEPTH), order=order)
        model = _model(plan)
        steps: dict[str, list[tuple[int, ...]]] = {
            f"{order} deepest": [(DEPTH,)],
            f"{order} joint": [(LAYERS, DEPTH)],
            f"{order} two passes": [(LAYERS,), (DEPTH,)],
        }
        for name, passes in steps.items():
            names.append(name)
            kinds.append(_step(model, passes))
    seconds = take_turns(kinds, rounds, on_progress)
    median = {name: statistics.median(times) for name, times in zip(names, seconds, strict=True)}
    return {
        "name": "joint-step",
        "ours": {str(order): median[f"{order} joint"] for order in ORDERS},
        "peer": {
            **{f"{order}, deepest path alone": median[f"{order} deepest"] for order in ORDERS},
            **{f"{order}, a pass for each depth": median[f"{order} two passes"] for order in ORDERS},
        },
        "ratio": {
            **{f"{order} to deepest alone": median[f"{order} joint"] / median[f"{order} deepest"] for order in ORDERS},
            **{
                f"{order}, a pass for each depth, to deepest alone": median[f"{order} two passes"]
                / median[f"{order} deepest"]
                for order in ORDERS
            },
        },
        "shape": f"wav2vec2-base, {LAYERS} -> {DEPTH}, {BATCH} x {SECONDS:g} s, CTC, float32, seconds per step, "
        f"{rounds} rounds, {torch.get_num_threads()} threads",
    }


def _model(plan: FoldPlan) -> nn.Module:
    config = transformers_class("Wav2Vec2Config")(num_hidden_layers=LAYERS, mask_time_prob=0.0)
    torch.manual_seed(0)
    model: nn.Module = fold(transformers_class("Wav2Vec2ForCTC")(config), plan)
    return model.train()


def _step(model: nn.Module, passes: list[tuple[int, ...]]) -> Callable[[], None]:
    """The forward and backward work of one optimiser step; each tuple is one pass."""
    audio_BT = torch.randn(BATCH, int(SECONDS * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))
    frames_B = torch.tensor(output_frames(model, [audio_BT.shape[1]] * BATCH))
    labels_BU = torch.arange(1, 31).repeat(BATCH, 3)
    counts = StepCounts(labels_BU.numel(), int(frames_B.sum()))

    def run() -> None:
        for depths in passes:
            set_depths(model, depths)
            logits: Tensor = model(audio_BT).logits
            logits_PBTV = logits.unflatten(0, (len(depths), BATCH))
            lengths = torch.full((BATCH,), labels_BU.shape[1])
            joint_loss(logits_PBTV, frames_B, labels_BU, lengths, counts, alpha=1.0, beta=0.0).total.backward()
        model.zero_grad(set_to_none=True)

    return run


def take_turns(
    kinds: list[Callable[[], None]], rounds: int, on_progress: Callable[[int, int], None]
) -> list[list[float]]:
    """Seconds of each kind in each round; a first round for warming up is not counted."""
    seconds: list[list[float]] = [[] for _ in kinds]
    for turn in range(rounds + 1):
        for number, run in enumerate(kinds):
            began = time.perf_counter()
            run()
            if turn:
                seconds[number].append(time.perf_counter() - began)
            on_progress(turn * len(kinds) + number + 1, (rounds + 1) * len(kinds))
    return seconds
