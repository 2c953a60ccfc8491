"""Utterances that are too short or too long for a model, found before any worker starts."""

from typing import TYPE_CHECKING, Any

from foldray.config.corpus import SAMPLE_RATE
from foldray.config.spec import RunSpec
from foldray.data.epoch import samples_at_speed
from foldray.data.manifest import Manifest, read_index
from foldray.errors import UserError
from foldray.models.families import FAMILIES

if TYPE_CHECKING:
    from torch import nn

LONG_ENOUGH = 0.25
"""Seconds that every family's usual masks and convolutions fit into; torch is imported only for shorter utterances."""


def check_shortest(spec: RunSpec, corpus: str, manifest: Manifest) -> None:
    """Check that the shortest utterances give the model frames and its masks room, and that the longest ones fit.

    Raises:
        UserError: An utterance of any split gives no frame, or one of `train` fewer than a SpecAugment mask has; or
            one is longer than the window of a model with a fixed length.
    """
    shortest = {
        split: read_index(corpus, manifest, split).num_samples.min(keepdims=True) for split in manifest.rows_by_split
    }
    if "train" in shortest:
        shortest["train"] = samples_at_speed(shortest["train"], max(spec.augment.speeds))
    if FAMILIES[spec.model.family].fixed_length:
        _check_window(spec, corpus, manifest)
    fewest = min((int(samples[0]) for samples in shortest.values()), default=SAMPLE_RATE)
    if fewest >= LONG_ENOUGH * SAMPLE_RATE and "mask_time_length" not in spec.model.config:
        return
    from foldray.models.count import fold_on_meta
    from foldray.models.features import output_frames

    planned = spec.planned_model()
    model = fold_on_meta(planned.model, planned.plan, len(manifest.tokenizer), planned.decoder)
    for split, samples in shortest.items():
        frames = output_frames(model, [int(samples[0])])[0]
        if frames < 1:
            seconds = int(samples[0]) / SAMPLE_RATE
            problem = f"an utterance of '{split}' with {seconds:.3f} s gives the model no frame; raise it"
            raise UserError("corpus.min_seconds", problem)
        if split == "train":
            check_masks(model, frames)


def _check_window(spec: RunSpec, corpus: str, manifest: Manifest) -> None:
    """Raise UserError if an utterance is longer than the window of a model with a fixed length."""
    from foldray.models.count import fold_on_meta
    from foldray.models.features import build_extractor

    planned = spec.planned_model()
    model = fold_on_meta(planned.model, planned.plan, len(manifest.tokenizer), planned.decoder)
    window = build_extractor(model).n_samples / SAMPLE_RATE
    for split in manifest.rows_by_split:
        seconds = int(read_index(corpus, manifest, split).num_samples.max()) / SAMPLE_RATE
        slowed = seconds / min(spec.augment.speeds) if split == "train" else seconds
        if slowed > window:
            how = f" at {min(spec.augment.speeds):g} times its speed (augment.speeds)" if slowed > seconds else ""
            problem = f"an utterance of '{split}' takes {slowed:.1f} s{how}, the model's window is {window:g} s"
            raise UserError("corpus.max_seconds", f"{problem}; lower it to {window * seconds / slowed:.1f}")


def check_masks(model: "nn.Module", fewest_frames: int) -> None:
    """Raise UserError where transformers' SpecAugment would fail: on a batch shorter than one mask."""
    config: Any = model.config
    masks = getattr(config, "apply_spec_augment", False) and getattr(config, "mask_time_prob", 0.0) > 0
    if masks and config.mask_time_length > fewest_frames:
        raise UserError(
            "model.config.mask_time_length",
            f"{config.mask_time_length} frames are more than the shortest utterance has ({fewest_frames}); "
            "lower it, or raise corpus.min_seconds",
        )
