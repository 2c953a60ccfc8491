"""A hybrid model over byte-pair units, from the corpus to the text: training, its folder, three ways to decode."""

from pathlib import Path

import pytest
import torch

from foldray import load_model
from foldray.config.corpus import CorpusSpec
from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import BatchLoader
from foldray.errors import UserError
from foldray.evaluation.decode import DECODINGS, check_decoding, recognise
from foldray.evaluation.score import score_depths
from foldray.models.families import transformers_class
from foldray.models.fold import set_depths
from foldray.models.processor import read_tokenizer
from foldray.training.context import WorkerContext
from foldray.training.final_model import finish_run
from foldray.training.loop import train_model
from tests.support.corpora import prepare_serially
from tests.support.training import job_for
from tests.support.transcripts import texts_of


@pytest.fixture(scope="module")
def prepared_bpe(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    spec = CorpusSpec(path=str(spoken), units="bpe", vocab_size=60, row_group_seconds=10, shard_minutes=0.5)
    return prepare_serially(spec, tmp_path_factory.mktemp("store"))


def test_labels_are_counted_in_units_and_text_comes_back(
    prepared_bpe: tuple[str, Manifest], prepared: tuple[str, Manifest]
) -> None:
    corpus, manifest = prepared_bpe
    assert (len(manifest.tokenizer), manifest.tokenizer.vocabulary[:2]) == (60, ["<pad>", "<unk>"])
    assert manifest.corpus_id != prepared[1].corpus_id
    index = read_index(corpus, manifest, "train")
    spelled = read_index(*prepared, "train")
    characters = dict(zip(spelled.ids.to_pylist(), spelled.num_labels, strict=True))
    fewer = [
        count < characters[i]
        for i, count in zip(index.ids.to_pylist(), index.num_labels, strict=True)
        if i in characters
    ]
    assert fewer
    assert all(fewer)


@pytest.mark.main
def test_a_hybrid_model_is_trained_saved_and_decoded_in_three_ways(
    prepared_bpe: tuple[str, Manifest], spoken: Path, tmp_path: Path
) -> None:
    corpus, manifest = prepared_bpe
    job = job_for("conformer", prepared_bpe, tmp_path, steps=2)
    trained = train_model(job, WorkerContext())
    finish_run(job, trained.final_steps, trained.attempt)
    folder = f"{job.run}/model"
    assert read_tokenizer(folder) == manifest.tokenizer
    model = load_model(folder, depth=4)
    loader = BatchLoader(read_index(corpus, manifest, "test"), model, manifest.tokenizer, None, 0)
    batch = loader.load(torch.arange(2).numpy(), 0)
    for text, labels, count in zip(batch.texts, batch.labels_BU, batch.num_labels_B, strict=True):
        assert manifest.tokenizer.decode(labels[:count].tolist()) == text
    tokenizer = transformers_class("ParakeetTokenizer").from_pretrained(folder)
    with torch.no_grad():
        best_BT = model(**batch.encoder_inputs).ctc_logits.argmax(-1)
    greedy = recognise(model, batch.encoder_inputs, batch.frames_B, manifest.tokenizer, "ctc")
    stock = [tokenizer.decode(best[:frames]) for best, frames in zip(best_BT, batch.frames_B, strict=True)]
    assert greedy == [" ".join(text.split()) for text in stock]
    for decoding in DECODINGS:
        scores = score_depths(model, manifest.tokenizer, corpus, manifest, "test", (2, 4), decoding=decoding)  # type: ignore[arg-type]
        set_depths(model, [4])
        assert [score.depth for score in scores] == [2, 4]
        said = {u.id: u.hypothesis for u in scores[1].utterances}
        audio = str(next((spoken / "audio").rglob(f"{batch.ids[0]}.*")))
        assert texts_of(folder, [audio], 4, decoding) == [said[batch.ids[0]]]


def test_ways_to_decode_that_a_model_lacks_are_refused(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = job_for("parakeet", prepared, tmp_path, steps=1)
    trained = train_model(job, WorkerContext())
    finish_run(job, trained.final_steps, trained.attempt)
    model = load_model(f"{job.run}/model")
    check_decoding(model, "ctc")
    with pytest.raises(UserError, match="--decoding: joint needs a decoder, which ParakeetForCTC lacks; use ctc"):
        check_decoding(model, "joint")
