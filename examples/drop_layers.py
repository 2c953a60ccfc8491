"""Which layers of a checkpoint matter least? The loss without each one, on the validation split, before any training.

    python examples/drop_layers.py whisper-base corpus.path=PATH/an4 --keep 5 --keep-decoder 4

Drops the layer whose loss is lowest, then the next one, until as many are left as `--keep` says, and prints them as
`model.layers` for a recipe. The model must recognise speech already: use a fine-tuned CTC model, or Whisper.
"""

import argparse
import sys

import torch
from transformers import PreTrainedModel

from foldray import FoldPlan, UserError
from foldray.config.recipes import load_recipe
from foldray.config.spec import RunSpec
from foldray.data.epoch import plan_scoring
from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import BatchLoader
from foldray.folding.loss import attention_per_path, ctc_per_path
from foldray.models.families import FAMILIES
from foldray.models.fold import ctc_logits
from foldray.models.from_checkpoint import load_folded
from foldray.models.stock_config import checkpoint_config, find_checkpoint
from foldray.stages.prepare import prepare_stage

Layers = dict[str, list[int]]
"""The layers left in each stack, by the name of its field."""


class Losses:
    """Losses per label of a checkpoint without some of its layers.

    Args:
        spec: Names the checkpoint and the batches.
        corpus: URI of the prepared corpus.
        manifest: Its manifest.
        utterances: How many of its validation split count.
    """

    def __init__(self, spec: RunSpec, corpus: str, manifest: Manifest, utterances: int) -> None:
        self._spec, self._tokenizer = spec, manifest.tokenizer
        self._checkpoint = find_checkpoint(str(spec.model.checkpoint))
        self._index = read_index(corpus, manifest, "valid")
        # Batches are sorted by length, so every n-th one is a fair sample.
        batches = plan_scoring(self._index, spec.batch.max_duration)
        self._batches = batches[:: max(1, len(self._index) // utterances)]

    def layers(self) -> Layers:
        """All layers of the checkpoint."""
        family = FAMILIES[self._spec.model.family]
        config = checkpoint_config(self._spec.model, self._checkpoint)
        found = {"layers": list(range(getattr(family.depth_config(config), family.depth_field)))}
        if family.decoder_depth_field:
            found["decoder_layers"] = list(range(getattr(config, family.decoder_depth_field)))
        return found

    @torch.inference_mode()
    def of(self, left: Layers) -> float:
        """The loss per label with the layers that are left, in nats."""
        model = self._model(left)
        loader = BatchLoader(self._index, model, self._tokenizer, None, seed=0)
        total, labels = 0.0, 0
        for batch in loader.ahead(self._batches, epoch=0):
            if batch.targets_BU is None:
                log_probs = ctc_logits(model(**batch.encoder_inputs))[None].float().log_softmax(-1)
                loss_P = ctc_per_path(log_probs, batch.frames_B, batch.labels_BU, batch.num_labels_B, blank=0)
                labels += int(batch.num_labels_B.sum())
            else:
                logits = model(**batch.inputs, use_cache=False).logits[None, :, -batch.targets_BU.shape[1] :].float()
                loss_P = attention_per_path(logits, batch.targets_BU, batch.num_labels_B + 1, smoothing=0.0)
                labels += int((batch.num_labels_B + 1).sum())
            total += float(loss_P)
        return total / labels

    def _model(self, left: Layers) -> PreTrainedModel:
        spec = self._spec.model.model_copy(update={name: tuple(layers) for name, layers in left.items()})
        plans = [FoldPlan(len(layers), (len(layers),)) for layers in left.values()]
        model, _, fresh = load_folded(spec, self._checkpoint, plans[0], self._tokenizer, 0, *plans[1:])
        if fresh:
            raise UserError("model.checkpoint", f"{spec.checkpoint} does not recognise speech: {fresh[0]} is new")
        torch.nn.Module.eval(model)
        return model


def drop(losses: Losses, left: Layers, name: str, keep: int) -> None:
    """Drop layers of one stack until `keep` are left, each time the one without which the loss is lowest."""
    while len(left[name]) > keep:
        without = {
            layer: losses.of({**left, name: [each for each in left[name] if each != layer]}) for layer in left[name]
        }
        least = min(without, key=lambda layer: without[layer])
        print(f"{name} without", ", ".join(f"{layer}: {loss:.2f}" for layer, loss in without.items()), flush=True)
        left[name].remove(least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="fields of the recipe, such as corpus.path=PATH")
    parser.add_argument("--keep", type=int, help="layers of the encoder to keep; default: all")
    parser.add_argument("--keep-decoder", type=int, help="layers of the decoder to keep; default: all")
    parser.add_argument("--utterances", type=int, default=50, help="of the validation split, about")
    given = parser.parse_intermixed_args()
    spec = load_recipe(given.recipe, given.overrides)
    if not spec.model.checkpoint:
        raise UserError("model.checkpoint", "set it: no layer of random weights matters")
    losses = Losses(spec, *prepare_stage(spec), given.utterances)
    left = losses.layers()
    print(f"all layers: {losses.of(left):.2f} nats per label", flush=True)
    for name, keep in (("layers", given.keep), ("decoder_layers", given.keep_decoder)):
        if keep and name in left:
            drop(losses, left, name, keep)
    print(f"left: {losses.of(left):.2f}", *(f"'model.{name}={layers}'" for name, layers in left.items()))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
