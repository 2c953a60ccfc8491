"""Recipes for machines that are not at hand: each is prepared, trained and scored with a tiny stand-in for its model.

What stays is all that a recipe says but widths and lengths: family, layers, depths, splits, units, front end, rates,
masks (from the first epoch here).
"""

import json
from pathlib import Path

import pytest
import soundfile
import torch

from foldray.config.model import ModelSpec
from foldray.config.recipes import load_recipe, recipe_names
from foldray.evaluation.score import score_depths
from foldray.models.fold import decoder_stack_of, stack_of
from foldray.models.processor import read_tokenizer
from foldray.models.save_load import load_model
from foldray.models.stock import write_random_checkpoint
from foldray.training.context import WorkerContext
from foldray.training.job import TrainJob
from foldray.training.loop import train_model
from foldray.training.run_folder import whole_checkpoints
from tests.support.corpora import prepare_serially
from tests.support.corpus_writers import Item, write_kaldi, write_librispeech
from tests.support.seq2seq import write_moonshine, write_whisper

NARROW = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_conv_pos_embeddings": 16,
          "num_conv_pos_embedding_groups": 2}  # fmt: skip
STAND_INS = {
    "wav2vec2-base-8": (12, {**NARROW, "conv_dim": [16] * 7}),
    "hubert-large-16": (24, {**NARROW, "conv_dim": [16] * 7}),
    "hubert-large-12": (24, {**NARROW, "conv_dim": [16] * 7}),
    "conformer-swbd-6": (None, {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}),
    "conformer-libri960-6": (None, {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}),
}
"""Layers of the checkpoint that a recipe begins with, None for none, and what is smaller here."""


def read_items(spoken: Path) -> list[Item]:
    """Twenty spoken utterances named as LibriSpeech names them."""
    items = []
    for split, count in (("train", 16), ("test", 4)):
        for number, line in enumerate((spoken / f"{split}.jsonl").read_text().splitlines()[:count]):
            row = json.loads(line)
            samples_T, rate = soundfile.read(spoken / row["audio"], dtype="float32")
            speaker = f"{len(split)}{number % 8}"
            part = "valid" if split == "train" and number % 8 < 2 else split
            items.append(Item(f"{speaker}-1-{number:04d}", part, speaker, row["text"], samples_T, rate, "flac"))
    return items


def write_corpus(recipe: str, items: list[Item], folder: Path) -> None:
    """A corpus laid out as the recipe wants it."""
    if recipe == "conformer-swbd-6":
        write_kaldi(folder, items)
        return
    write_librispeech(folder, items)
    if recipe == "conformer-libri960-6":
        for home, part, speaker in MOVED:
            (folder / part).mkdir()
            (folder / home / speaker).rename(folder / part / speaker)


MOVED = (("dev-clean", "dev-other", "51"), ("train-clean-100", "train-clean-360", "52"),
         ("train-clean-100", "train-other-500", "53"))  # fmt: skip
"""Speakers for the other parts of LibriSpeech."""


SMALL = {"an4", "an4-fold-6-12", "hubert-tiny", "quickstart", "quickstart-search", "wav2vec2-tiny", "whisper-tiny.en"}
"""Recipes that run as they are on two cores."""


WHISPER = {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
           "decoder_ffn_dim": 64, "max_source_positions": 600, "max_target_positions": 64}  # fmt: skip
MOONSHINE = {"hidden_size": 32, "intermediate_size": 64, "encoder_num_attention_heads": 2,
             "decoder_num_attention_heads": 2, "max_position_embeddings": 128}  # fmt: skip
WITH_DECODER = {
    "whisper-tiny.en": (4, WHISPER),
    "whisper-base": (6, WHISPER),
    "whisper-small": (12, WHISPER),
    "moonshine-tiny": (6, MOONSHINE),
}
"""Blocks of either stack of the checkpoint, and what is smaller here."""


def test_every_large_recipe_has_a_stand_in() -> None:
    assert {*recipe_names()} == {*STAND_INS} | {*WITH_DECODER} | SMALL


@pytest.mark.main
@pytest.mark.parametrize("recipe", WITH_DECODER)
def test_a_recipe_with_a_decoder_trains_with_a_stand_in(recipe: str, spoken: Path, tmp_path: Path) -> None:
    layers, smaller = WITH_DECODER[recipe]
    checkpoint = (write_whisper if "whisper" in recipe else write_moonshine)(tmp_path / "stock", layers)
    sizes = [f"model.config.{name}={value}" for name, value in smaller.items()]
    short = ["optim.epochs=null", "optim.steps=3", "batch.max_duration=12", "batch.per_step=2", "scale.workers=1"]
    place = [f"corpus.path={spoken}", "corpus.max_seconds=12", f"model.checkpoint={checkpoint}"]
    spec = load_recipe(recipe, [*place, *sizes, *short, f"storage.root={tmp_path}"])
    corpus, manifest = prepare_serially(spec.corpus, tmp_path)
    run = str(tmp_path / "run")
    assert train_model(TrainJob(spec, run, corpus, str(checkpoint)), WorkerContext()).step == 3

    saved = whole_checkpoints(run)[-1].uri
    folded = load_model(saved)
    decoder = decoder_stack_of(folded)
    assert spec.fold.decoder is not None
    assert decoder is not None
    assert (stack_of(folded).plan, decoder.plan) == (spec.fold.plan(), spec.fold.decoder.plan())
    scores = score_depths(
        folded, read_tokenizer(saved), corpus, manifest, "test", spec.fold.depths, decoding="attention"
    )
    assert [score.depth for score in scores] == list(spec.fold.depths)


@pytest.mark.main
@pytest.mark.parametrize("recipe", STAND_INS)
def test_a_recipe_trains_with_a_stand_in(recipe: str, spoken: Path, tmp_path: Path) -> None:
    layers, smaller = STAND_INS[recipe]
    write_corpus(recipe, read_items(spoken), tmp_path / "corpus")
    sizes = [f"model.config.{name}={value}" for name, value in smaller.items()]
    short = ["optim.epochs=1", "augment.from_epoch=1", "batch.max_duration=36", "batch.per_step=2", "scale.workers=1"]
    units = ["corpus.vocab_size=40"] if "conformer" in recipe else []
    place = [f"corpus.path={tmp_path / 'corpus'}", f"storage.root={tmp_path}"]
    spec = load_recipe(recipe, [*place, *sizes, *short, *units])
    corpus, manifest = prepare_serially(spec.corpus, tmp_path)
    assert manifest.utterances_out == 20
    assert set(manifest.rows_by_split) == {"train", "valid", "test"}

    init = tmp_path / "init"
    stock = ModelSpec(family=spec.model.family, config=spec.model.config)
    write_random_checkpoint(stock, layers or spec.fold.num_layers, manifest.tokenizer, 0, init)
    model = spec.model.model_copy(update={"checkpoint": str(init) if layers else None})
    spec = spec.model_copy(update={"model": model})
    run = str(tmp_path / "run")
    trained = train_model(TrainJob(spec, run, corpus, str(init)), WorkerContext())
    assert trained.step > 0

    saved = whole_checkpoints(run)[-1].uri
    folded = load_model(saved)
    assert stack_of(folded).plan == spec.fold.plan()
    assert all(torch.isfinite(weight).all() for weight in folded.state_dict().values())
    scores = score_depths(folded, read_tokenizer(saved), corpus, manifest, "test", spec.fold.depths)
    assert [score.depth for score in scores] == list(spec.fold.depths)
