"""Which layers of a checkpoint matter least? The loss without each one, on the validation split, before any training.

    python examples/drop_layers.py whisper-base corpus.path=PATH/an4 --keep 5 --keep-decoder 4

Drops the layer without which the loss is lowest, then the next one, until as many are left as `--keep` says, and prints
them as `model.layers` for a recipe, whose fold must then have as many layers. The model must recognise speech already:
use a fine-tuned CTC model, or Whisper.
"""

import argparse
import sys
from collections.abc import Iterable

import numpy as np
import torch
from transformers import PreTrainedModel

from foldray import FoldPlan, UserError
from foldray.config.recipes import load_recipe
from foldray.config.spec import RunSpec
from foldray.data.epoch import plan_scoring
from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import BatchLoader
from foldray.models.families import FAMILIES
from foldray.models.from_checkpoint import load_folded
from foldray.models.stock_config import checkpoint_config, find_checkpoint
from foldray.stages.prepare import prepare_stage
from foldray.training.validation import batch_losses

Layers = dict[str, list[int]]
"""The layers left in each stack, by the name of its field."""
OPTIONS = {"layers": "--keep", "decoder_layers": "--keep-decoder"}
BATCH = 8


class Losses:
    """Losses of a checkpoint without some of its layers.

    Args:
        spec: Names the checkpoint.
        corpus: URI of the prepared corpus.
        manifest: Its manifest.
        utterances: How many of its validation split count, evenly spaced over all lengths.
    """

    def __init__(self, spec: RunSpec, corpus: str, manifest: Manifest, utterances: int) -> None:
        self._spec, self._tokenizer = spec.planned_model().model, manifest.tokenizer
        self._family = FAMILIES[self._spec.family]
        self._checkpoint = find_checkpoint(str(self._spec.checkpoint))
        self._index = read_index(corpus, manifest, "valid")
        by_length = np.concatenate(plan_scoring(self._index, spec.batch.max_duration))
        spread = np.linspace(0, len(by_length) - 1, min(utterances, len(by_length))).astype(int)
        self._batches = [by_length[spread[i : i + BATCH]] for i in range(0, len(spread), BATCH)]

    def layers(self) -> Layers:
        """All layers of the checkpoint."""
        family, config = self._family, checkpoint_config(self._spec, self._checkpoint)
        found = {"layers": list(range(getattr(family.depth_config(config), family.depth_field)))}
        if family.decoder_depth_field:
            found["decoder_layers"] = list(range(getattr(config, family.decoder_depth_field)))
        return found

    def without_each(self, left: Layers, name: str) -> dict[int, float]:
        """The loss without each layer that is left in one stack, but for a first layer that the others need."""
        needed = 1 if self._family.carried and name == "layers" else 0
        return {
            layer: self.of({**left, name: [each for each in left[name] if each != layer]})
            for layer in left[name][needed:]
        }

    @torch.inference_mode()
    def of(self, left: Layers) -> float:
        """The loss per label with the layers that are left, in nats."""
        model = self._model(left)
        loader = BatchLoader(self._index, model, self._tokenizer, None, seed=0)
        total, labels = 0.0, 0
        for batch in loader.ahead(self._batches, epoch=0):
            total += float(batch_losses(model, batch)[0])
            labels += int(batch.num_labels_B.sum()) + (len(batch.ids) if self._family.seq2seq else 0)  # the end token
        return total / labels

    def _model(self, left: Layers) -> PreTrainedModel:
        chosen = {name: tuple(layers) for name, layers in left.items()}
        spec = self._spec.model_copy(update={**chosen, "seed_layers": "stepwise"})
        plans = [FoldPlan(len(layers), (len(layers),)) for layers in left.values()]
        model, _, fresh = load_folded(spec, self._checkpoint, plans[0], self._tokenizer, 0, *plans[1:])
        if new := [key for key in fresh if key.startswith(self._family.head)]:
            raise UserError("model.checkpoint", f"{spec.checkpoint} has no head for this corpus: {new[0]} is new")
        torch.nn.Module.eval(model)
        return model


def drop_layers(losses: Losses, keep: dict[str, int | None]) -> Iterable[str]:
    """Drop layers until as many are left in each stack as `keep` says, None for all; yields what to print."""
    left = losses.layers()
    for name, number in keep.items():
        option, most = OPTIONS[name], len(left.get(name, ()))
        if number is not None and not most:
            raise UserError(option, "the model has no decoder that folds; leave it out")
        if number is not None and not 1 <= number <= most:
            raise UserError(option, f"{number} must be 1 to {most}, the checkpoint's layers")
    yield f"all layers: {losses.of(left):.2f} nats per label"
    for name, number in keep.items():
        while number is not None and len(left[name]) > number:
            without = losses.without_each(left, name)
            yield f"{name} without " + ", ".join(f"{layer}: {loss:.2f}" for layer, loss in without.items())
            left[name].remove(min(without, key=lambda layer: without[layer]))
    asked = [f"'model.{name}={left[name]}'" for name, number in keep.items() if number is not None]
    yield " ".join([f"left: {losses.of(left):.2f}", *asked])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, such as corpus.path=PATH")
    parser.add_argument("--keep", type=int, help="layers of the encoder to keep; default: all")
    parser.add_argument("--keep-decoder", type=int, help="layers of the decoder to keep; default: all")
    parser.add_argument("--utterances", type=int, default=50, help="of the validation split")
    given = parser.parse_intermixed_args()
    spec = load_recipe(given.recipe, given.overrides)
    if not spec.model.checkpoint:
        raise UserError("model.checkpoint", "set it: no layer of random weights matters")
    if given.utterances < 1:
        raise UserError("--utterances", f"{given.utterances} must be 1 or more")
    losses = Losses(spec, *prepare_stage(spec), given.utterances)
    for line in drop_layers(losses, {"layers": given.keep, "decoder_layers": given.keep_decoder}):
        print(line, flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
