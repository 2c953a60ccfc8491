"""`python -m benchmarks one-cycle`: a training step of one fold against steps of all the models it replaces.

The peer is training without a fold: the same model at a single depth, for each depth that the fold serves (also those
it serves without having trained them), each trained separately on the same batch. All run forward, CTC, backward and
the optimiser's step, on the Conformer of recipe an4-fold-6-12; kinds alternate, so that a machine that slows down
slows all of them. Next to each measured ratio is the one from counted MACs: a step costs its front end and head once,
and one block for each different prefix of its paths.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.joint_step import take_turns
from benchmarks.measure import BenchmarkResult
from foldray.config.corpus import SAMPLE_RATE
from foldray.config.recipes import load_recipe
from foldray.folding.batchnorm import Renorm
from foldray.folding.loss import StepCounts, joint_loss
from foldray.folding.plan import FoldPlan, Order
from foldray.models.costs import costs_of
from foldray.models.families import FAMILIES
from foldray.models.features import output_frames
from foldray.models.fold import fold
from foldray.models.stock import initialise
from foldray.models.stock_config import stock_config
from foldray.training.context import WorkerContext
from foldray.training.optimizer import make_optimizer

RECIPE = "an4-fold-6-12"
VOCAB_SIZE = 28
BATCH, SECONDS = 6, 2.7
SPREAD, CLUSTERED = (6, 8, 10, 12), (9, 10, 11, 12)

Fold = tuple[str, Order, tuple[int, ...], tuple[int, ...]]
FOLDS: tuple[Fold, ...] = (
    ("cycle", "cycle", SPREAD, SPREAD),
    ("in_place, all four trained", "in_place", SPREAD, SPREAD),
    ("in_place, 6 and 12 trained", "in_place", (6, 12), SPREAD),
    ("cycle, clustered", "cycle", CLUSTERED, CLUSTERED),
    ("in_place, clustered", "in_place", CLUSTERED, CLUSTERED),
)
"""Name, order, trained depths, and served depths, for each of which the peer trains a model."""


def bench_one_cycle(
    rounds: int = 5,
    folds: Sequence[Fold] = FOLDS,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchmarkResult:
    """Median seconds of a step of each fold and of each single-depth model, and how many times cheaper a fold is."""
    alone = sorted({depth for *_, served in folds for depth in served})
    plans = [FoldPlan(depth, (depth,)) for depth in alone]
    plans += [FoldPlan(trained[0], trained, order=order) for _, order, trained, _ in folds]
    models = [small_conformer(plan) for plan in plans]
    seconds = take_turns([_step(model, plan) for model, plan in zip(models, plans, strict=True)], rounds, on_progress)
    medians = [statistics.median(times) for times in seconds]
    peer = dict(zip(alone, medians, strict=False))
    ours = {name: median for (name, *_), median in zip(folds, medians[len(alone) :], strict=True)}
    counted = counted_macs(models[alone.index(6)], models[alone.index(12)])
    served = {name: depths for name, _, _, depths in folds}
    by_count = {
        name: sum(counted(FoldPlan(depth, (depth,))) for depth in depths)
        / counted(FoldPlan(trained[0], trained, order=order))
        for name, order, trained, depths in folds
    }
    kind = load_recipe(RECIPE).optim.kind
    return {
        "name": "one-cycle",
        "ours": ours,
        "peer": {f"depth {depth} by itself": median for depth, median in peer.items()},
        "ratio": {
            **{name: sum(peer[depth] for depth in depths) / ours[name] for name, depths in served.items()},
            **{f"{name}, by counting": ratio for name, ratio in by_count.items()},
        },
        "shape": f"{RECIPE}, {BATCH} x {SECONDS:g} s, CTC, {kind}, float32, seconds per step; ratio: models of depths "
        f"{_listed(SPREAD)} (clustered: {_listed(CLUSTERED)}) to the one fold that serves them all; {rounds} rounds, "
        f"{torch.get_num_threads()} threads",
    }


def _listed(depths: Sequence[int]) -> str:
    return ", ".join(map(str, depths))


def small_conformer(plan: FoldPlan) -> PreTrainedModel:
    """The recipe's model, folded."""
    spec = load_recipe(RECIPE).model
    torch.manual_seed(0)
    model: PreTrainedModel = FAMILIES[spec.family].model_class(stock_config(spec, plan.num_layers, VOCAB_SIZE))
    initialise(model)
    folded = fold(model, plan)
    folded.train()
    return folded


def _step(model: nn.Module, plan: FoldPlan) -> Callable[[], None]:
    """One optimiser step: every trained depth, one backward pass."""
    bins = load_recipe(RECIPE).model.config["num_mel_bins"]
    features_BTM = torch.randn(BATCH, int(100 * SECONDS), bins, generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones(features_BTM.shape[:2], dtype=torch.long)
    frames_B = torch.tensor(output_frames(model, [int(SECONDS * SAMPLE_RATE)] * BATCH))
    labels_BU = torch.arange(1, VOCAB_SIZE - 3).repeat(BATCH, 1)
    lengths_B = torch.full((BATCH,), labels_BU.shape[1])
    counts = StepCounts(labels_BU.numel(), int(frames_B.sum()))
    renorm = Renorm(model, torch.device("cpu"))
    optimizer = make_optimizer(model, load_recipe(RECIPE).optim, WorkerContext())

    def run() -> None:
        beta = 0.3 if len(plan.depths) > 1 else 0.0
        with renorm.observing(frames_B, 1.0):
            logits_NTV = model(input_features=features_BTM, attention_mask=mask_BT).logits
            logits_PBTV = logits_NTV.unflatten(0, (len(plan.depths), BATCH))
            joint_loss(logits_PBTV, frames_B, labels_BU, lengths_B, counts, alpha=0.5, beta=beta).total.backward()
        optimizer.step()
        renorm.move()
        optimizer.zero_grad(set_to_none=True)

    return run


def counted_macs(six: PreTrainedModel, twelve: PreTrainedModel) -> Callable[[FoldPlan], float]:
    """MACs of a pass over all depths of a plan: everything but the blocks once, and one block for each different prefix
    of its paths. (The head, a thousandth of it, is counted once as well.)"""
    shallow, deep = (costs_of(model)[-1].macs_per_audio_second for model in (six, twelve))
    block = (deep - shallow) / 6

    def count(plan: FoldPlan) -> float:
        return shallow - 6 * block + len(plan.prefixes(plan.depths)) * block

    return count
