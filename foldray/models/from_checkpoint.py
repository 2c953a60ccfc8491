"""Fold stock checkpoints of any depth, and measure how far the folded model starts from them."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foldray import storage
from foldray.config.model import ModelSpec
from foldray.errors import UserError
from foldray.folding.batchnorm import fix_statistics
from foldray.folding.plan import FoldPlan
from foldray.models.families import FAMILIES, REFUSED, Family, family_of, family_of_config
from foldray.models.fold import decoder_stack_of, fold, stack_of
from foldray.models.hub import list_model
from foldray.models.seed_layers import Method, fit_private, seed_blocks
from foldray.models.stock import load_stock
from foldray.models.stock_config import (
    checkpoint_config,
    choose_layers,
    find_checkpoint,
    fold_errors,
    is_hub_name,
    read_config,
    with_vocab_size,
)
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import PRIVATE_FILE, ModelFolder


def fold_checkpoint(
    checkpoint: str | Path,
    plan: FoldPlan,
    method: Method = "stepwise",
    decoder: FoldPlan | None = None,
    layers: Sequence[int] | None = None,
    decoder_layers: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Load a stock checkpoint and fold it, in evaluation mode.

    Args:
        checkpoint: A local folder, a URI or a hub name; its model family is detected.
        plan: The fold plan. The checkpoint may have more layers than `plan.num_layers`.
        method: How its layers become the physical ones: "stepwise" takes evenly spaced layers, "first" the lowest,
            "average" and "svd" compute means (see `foldray.models.seed_layers`).
        decoder: A plan for the decoder too, as in `fold`; its layers are chosen in the same way.
        layers, decoder_layers: Numbers of the checkpoint's layers to use, ascending; the others are dropped before
            `method` applies. Default: all.

    Returns:
        The folded model with the checkpoint's head. A checkpoint without one, such as a pretrained encoder, gets a
        random head and a warning.

    Raises:
        UserError: The model's class can't be folded, a key is missing or unexpected, or the plan does not fit.

    Example:
        >>> model = fold_checkpoint("facebook/wav2vec2-base-960h", FoldPlan(8, (8, 12)))
    """
    place = find_checkpoint(str(checkpoint))
    if _has_private(place):
        raise UserError(place, "is a folded model with private parts, which would be lost; open it with load_model")
    config = read_config(place)
    family = family_of_config(config)
    if family is None:
        reasons = [REFUSED[name] for name in config.architectures or () if name in REFUSED]
        problem = f"is a {config.model_type}, which foldray does not fold"
        raise UserError(str(checkpoint), ": ".join((problem, *reasons[:1])))
    model, fresh = load_stock(family, place, config, seed=0)
    if any(key.startswith(family.head) for key in fresh):
        warnings.warn(f"{checkpoint} has no head of {family.model}; it is initialised at random", stacklevel=2)
    folded, _ = _fold_deeper(model, family, plan, method, decoder, (layers, decoder_layers))
    nn.Module.eval(folded)
    return folded


def _has_private(place: str) -> bool:
    if is_hub_name(place):
        return PRIVATE_FILE in list_model(place)
    return storage.exists(ModelFolder(place).file(PRIVATE_FILE))


def load_folded(
    spec: ModelSpec,
    checkpoint: str,
    plan: FoldPlan,
    tokenizer: Tokenizer,
    seed: int,
    decoder: FoldPlan | None = None,
) -> tuple[PreTrainedModel, list[nn.Module], list[str]]:
    """Fold a stock checkpoint for training; returns the model, its encoder's layers and the re-initialised keys.

    Only the head for another tokenizer may be re-initialised; any other missing, surplus or misshapen key
    raises UserError. `checkpoint`: as `find_checkpoint` gives it.
    """
    family = FAMILIES[spec.family]
    config = with_vocab_size(checkpoint_config(spec, checkpoint), len(tokenizer))
    model, fresh = load_stock(family, checkpoint, config, seed, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # private low-rank parts begin at random: the same in every process
        layers = (spec.layers or None, spec.decoder_layers or None)
        folded, sources = _fold_deeper(model, family, plan, spec.seed_layers, decoder, layers)
    return folded, sources, fresh


def _fold_deeper(
    model: PreTrainedModel,
    family: Family,
    plan: FoldPlan,
    method: Method,
    decoder: FoldPlan | None,
    layers: tuple[Sequence[int] | None, Sequence[int] | None],
) -> tuple[PreTrainedModel, list[nn.Module]]:
    """Fold a checkpoint; returns it and its encoder's layers, if they are more than the physical ones.

    `layers`: those chosen of both stacks, as in `fold_checkpoint`.
    """
    if layers[1] is not None and not decoder:
        raise UserError("model.decoder_layers", "the decoder is not folded; give it a plan too")
    with fold_errors():
        family.check_plan(plan, decoder)
    encoder: Any = model.get_submodule(family.encoder)
    numbers = choose_layers(family, len(encoder.layers), plan, method, layers[0])
    kept, chosen = _take_seed(encoder, plan, method, numbers)
    family.set_layers(model.config, plan.num_layers)
    if decoder:
        module: Any = model.get_submodule(family.decoder or "")
        numbers = choose_layers(family, len(module.layers), decoder, method, layers[1], "fold.decoder")
        _, decoders = _take_seed(module, decoder, method, numbers)
        family.set_layers(model.config, plan.num_layers, decoder.num_layers)
    with fold_errors():
        fold(model, plan, decoder)
    if method == "svd":
        fit_private(stack_of(model), chosen)
        if (stack := decoder_stack_of(model)) is not None:
            fit_private(stack, decoders)
    return model, [fix_statistics(block) for block in kept if plan.num_layers < len(kept)]


def _take_seed(
    module: Any, plan: FoldPlan, method: Method, numbers: Sequence[int]
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Put the physical layers into an encoder or decoder; returns the layers that it had, and those of them used."""
    sources = list(module.layers)
    # fold() turns blocks of the sources into private ones where they are the seed's own.
    kept = copy.deepcopy(sources) if plan.num_layers < len(sources) else sources
    module.layers = nn.ModuleList(seed_blocks([sources[i] for i in numbers], plan, method))
    return kept, [kept[i] for i in numbers]


@torch.no_grad()
def initial_distances(
    model: PreTrainedModel, sources: Sequence[nn.Module], inputs: dict[str, Tensor], frames_B: Tensor
) -> dict[int, float]:
    """Measure how far each depth starts from the model with the layers `sources`.

    Args:
        model: The folded model.
        sources: The layers of the model it was folded from.
        inputs: One batch of the stock model's inputs.
        frames_B: Valid output frames.

    Returns:
        By depth, the Euclidean distance of the encoder's outputs over valid frames, relative to the norm of the
        original ones: 0 is the same function, above 1 nothing of it is left.
    """
    encoder: Any = model.get_submodule(family_of(model).encoder)
    folded, was_training = encoder.layers, model.training
    model.eval()
    try:
        ours_PBTD = _encoded(model, encoder, inputs).unflatten(0, (len(folded.run_depths), -1))
        encoder.layers = nn.ModuleList(sources)
        theirs_BTD = _encoded(model, encoder, inputs)
    finally:
        encoder.layers = folded
        model.train(was_training)
    valid_BT = torch.arange(theirs_BTD.shape[1], device=frames_B.device) < frames_B[:, None]
    wanted = theirs_BTD[valid_BT]
    return {
        depth: float((ours_BTD[valid_BT] - wanted).norm() / wanted.norm())
        for depth, ours_BTD in zip(folded.run_depths, ours_PBTD, strict=True)
    }


def _encoded(model: PreTrainedModel, encoder: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    if family_of(model).decoder:  # which may have a path for each depth, and is not needed
        states: Tensor = encoder(**{k: v for k, v in inputs.items() if not k.startswith("decoder_")}).last_hidden_state
        return states
    outputs: list[Tensor] = []
    hook = encoder.register_forward_hook(lambda _module, _args, output: outputs.append(output.last_hidden_state))
    try:
        model(**inputs)
    finally:
        hook.remove()
    return outputs[0]
