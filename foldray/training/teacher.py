"""A frozen teacher: the model that every depth is also distilled from (arXiv 1503.02531)."""

from typing import Any

import torch
from torch import Tensor, nn

from foldray import storage
from foldray.config.model import CHECKPOINT, RUN
from foldray.config.spec import RunSpec
from foldray.data.stream import Batch
from foldray.errors import UserError
from foldray.models.families import family_of, family_of_config
from foldray.models.features import build_extractor
from foldray.models.fold import ctc_logits, encoder_of, set_depths, stack_of
from foldray.models.hub import copy_model
from foldray.models.processor import has_tokenizer, read_tokenizer
from foldray.models.save_load import load_model
from foldray.models.stock import load_stock
from foldray.models.stock_config import find_checkpoint, is_hub_name, read_config
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.models.tokenizer import Tokenizer
from foldray.models.windows import fit_positions
from foldray.storage.layout import ModelFolder


class Teacher:
    """Computes the logits of a frozen model; it takes no gradient and is part of no checkpoint.

    Args:
        place: A resolved folder, URI or hub name: a folded model, which runs its deepest path, or a stock one.
        student: The model that is taught; both get the same inputs.
        tokenizer: The student's.
        device: Where to run.
        dtype: Autocast precision, as of the student; None for float32.

    Raises:
        UserError: The model does not load, takes other inputs, or has other tokens than the student.
    """

    def __init__(
        self,
        place: str,
        student: nn.Module,
        tokenizer: Tokenizer,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        folder = str(copy_model(place)) if is_hub_name(place) else place
        self._model = _load(folder)
        _check_inputs(place, self._model, student)
        _check_tokens(place, folder, tokenizer)
        self._model.to(device).requires_grad_(False)
        nn.Module.eval(self._model)
        self._device, self._dtype = device, dtype
        self._options = {"use_cache": False} if tokenizer.special else {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return the logits (B, T, V), or (B, U, V) of a decoder given the reference."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            output = self._model(**batch.inputs, **self._options)
        return output.logits if self._options else ctc_logits(output)


def teacher_place(spec: RunSpec) -> str | None:
    """Return where the teacher of a spec is; None without one. Raises UserError if there is no such folder."""
    named = spec.loss.teacher
    if named == CHECKPOINT:
        named = spec.planned_model().model.checkpoint
    if named and named.startswith(RUN):
        return spec.store.run(named.removeprefix(RUN)).model.uri
    try:
        return find_checkpoint(named)
    except UserError as error:
        raise UserError("loss.teacher", error.problem) from None


def _load(folder: str) -> Any:
    if storage.exists(ModelFolder(folder).fold):
        model = load_model(folder)
        set_depths(model, stack_of(model).plan.depths[-1])
        return model
    config = read_config(folder)
    family = family_of_config(config)
    if family is None:
        raise UserError("loss.teacher", f"{folder} is a {config.model_type}, which foldray does not fold")
    model, fresh = load_stock(family, folder, config, seed=0)
    if any(key.startswith(family.head) for key in fresh):
        raise UserError("loss.teacher", f"{folder} has no head, so its outputs are random; give a fine-tuned model")
    if family.fixed_length:
        fit_positions(encoder_of(model))
    return model


def _check_inputs(place: str, teacher: Any, student: Any) -> None:
    """Raise UserError if a teacher can't be given the features and the frames of the student."""
    kinds = [family_of(model).name for model in (teacher, student)]
    if kinds[0] != kinds[1]:
        raise UserError("loss.teacher", f"{place} is a {kinds[0]}, the student a {kinds[1]}; give one of its family")
    ours, theirs = (build_extractor(model).to_dict() for model in (student, teacher))
    if other := [name for name in ours if ours[name] != theirs.get(name)]:
        raise UserError("loss.teacher", f"{place} takes other features than the student ({other[0]} differs)")


def _check_tokens(place: str, folder: str, tokenizer: Tokenizer) -> None:
    """Raise UserError if a teacher's outputs stand for other tokens than the student's."""
    theirs: Tokenizer | None = None
    if tokenizer.special:
        theirs = read_stock_tokenizer(folder, "loss.teacher")
    elif has_tokenizer(folder):
        theirs = read_tokenizer(folder)
    if theirs is None or (theirs.vocabulary, theirs.subwords) != (tokenizer.vocabulary, tokenizer.subwords):
        raise UserError("loss.teacher", f"{place} has other tokens than the corpus; train a teacher on the same corpus")
