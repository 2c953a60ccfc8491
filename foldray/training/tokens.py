"""Whether the tokens of a corpus are those of the model that is trained on it."""

from foldray.config.spec import RunSpec
from foldray.data.manifest import Manifest
from foldray.errors import UserError
from foldray.models.families import FAMILIES


def check_units(spec: RunSpec) -> None:
    """Raise UserError if a model's text comes from tokens of another kind than the corpus is prepared with."""
    family, units = FAMILIES[spec.model.family], spec.corpus.units
    if family.seq2seq and units != "checkpoint":
        raise UserError("corpus.units", f"set it to checkpoint: {family.name} has the tokens of its checkpoint")
    if units == "checkpoint" and not family.seq2seq:
        problem = f"checkpoint is for models with a decoder, such as whisper; {family.name} has CTC: use characters"
        raise UserError("corpus.units", problem)


def check_tokens(spec: RunSpec, manifest: Manifest) -> None:
    """Raise UserError if a prepared corpus has other tokens than the checkpoint that training starts from."""
    check_units(spec)
    checkpoint = spec.planned_model().model.checkpoint
    if not FAMILIES[spec.model.family].seq2seq or not checkpoint:
        return
    from foldray.models.stock_tokenizer import read_stock_tokenizer

    if read_stock_tokenizer(checkpoint, "model.checkpoint") != manifest.tokenizer:
        raise UserError("corpus.tokenizer", f"has other tokens than model.checkpoint, {checkpoint}; remove it")
