"""Training of sequence-to-sequence models: resumed == uninterrupted, two ranks == one, teachers, validation."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from foldray.config.corpus import SAMPLE_RATE
from foldray.data.manifest import read_index, read_manifest, read_quarantine
from foldray.data.stream import BatchLoader
from foldray.errors import UserError
from foldray.folding.loss import taught_per_path
from foldray.models.families import FAMILIES
from foldray.models.stock import load_stock
from foldray.models.stock_config import read_config
from foldray.models.stock_tokenizer import read_stock_tokenizer
from foldray.results.metrics import read_metrics
from foldray.training.context import WorkerContext
from foldray.training.final_model import finish_run
from foldray.training.lengths import check_shortest
from foldray.training.loop import train_model
from foldray.training.run_folder import whole_checkpoints
from foldray.training.teacher import Teacher
from foldray.training.tokens import check_tokens, check_units
from foldray.training.validation import validate_checkpoint
from tests.support.seq2seq import again, job_for_whisper, spec_for_whisper, write_moonshine, write_whisper
from tests.support.training import assert_same, killed_at, spawn, timeless, weights


def test_a_prepared_corpus_has_the_tokens_of_the_checkpoint(spoken: Path, tmp_path: Path) -> None:
    job = job_for_whisper(spoken, tmp_path)
    manifest = read_manifest(job.corpus)
    tokenizer = read_stock_tokenizer(job.init)
    assert manifest.tokenizer == tokenizer
    index = read_index(job.corpus, manifest, "train")
    model, _ = load_stock(FAMILIES["whisper"], job.init, read_config(job.init), seed=0)
    batch = BatchLoader(index, model, manifest.tokenizer, None, seed=0).load(range(3), epoch=0)
    assert batch.num_labels_B.tolist() == index.num_labels[:3].tolist()
    assert tokenizer.special is not None
    for row, text, labels in zip(
        batch.inputs["decoder_input_ids"].tolist(), batch.texts, batch.num_labels_B, strict=True
    ):
        ids = [*tokenizer.special.prompt(""), *tokenizer.encode(text)]
        assert row[: len(ids)] == ids
        assert labels == len(ids) - 2
        assert tokenizer.decode(row[: len(ids)]) == text
    assert batch.targets_BU is not None
    ends = batch.targets_BU.gather(1, batch.num_labels_B[:, None])
    assert ends.flatten().tolist() == [tokenizer.special.end] * 3


@pytest.mark.main
def test_a_resumed_run_has_the_weights_of_one_never_killed(spoken: Path, tmp_path: Path) -> None:
    job = job_for_whisper(spoken, tmp_path)
    train_model(job, WorkerContext())
    killed = again(job, tmp_path / "killed")
    killed_at(killed, 5)
    train_model(killed, WorkerContext())
    assert_same(weights(killed.run), weights(job.run))
    assert timeless(killed.run) == timeless(job.run)
    losses = [record["attention"]["3"] for record in read_metrics(job.run)]
    assert losses[-1] < losses[0]


@pytest.mark.main
def test_two_ranks_train_what_one_does(spoken: Path, tmp_path: Path) -> None:
    job = job_for_whisper(spoken, tmp_path, optim={"lr": 1e-3, "steps": 3})
    train_model(job, WorkerContext())
    two = again(job, tmp_path / "two")
    spawn([two])
    assert_same(weights(two.run), weights(job.run), tolerance=2e-5)


def test_a_validation_has_loss_and_error_rates_of_every_depth(spoken: Path, tmp_path: Path) -> None:
    job = job_for_whisper(spoken, tmp_path, optim={"lr": 1e-3, "steps": 3})
    train_model(job, WorkerContext())
    (last,) = [each for each in whole_checkpoints(job.run) if each.step == 3]
    record = validate_checkpoint(job.run, 3, last.uri, job.corpus, 12.0)
    depths = {key: set(value) for key, value in record.items() if key != "step"}
    assert depths == {key: {"2", "3"} for key in ("valid_attention", "valid_wer", "valid_cer")}


@pytest.mark.main
def test_a_teacher_is_the_frozen_checkpoint_and_pulls_every_depth(spoken: Path, tmp_path: Path) -> None:
    alone = job_for_whisper(spoken, tmp_path, optim={"lr": 1e-3, "epochs": 4})
    train_model(alone, WorkerContext())
    loss = {"teacher": "checkpoint", "gamma": 4.0}
    taught = again(job_for_whisper(spoken, tmp_path, optim={"lr": 1e-3, "epochs": 4}, loss=loss), tmp_path / "taught")
    train_model(taught, WorkerContext())
    records = read_metrics(taught.run)
    assert set(records[0]["teacher"]) == {"2", "3"}
    assert records[-1]["teacher"]["2"] < records[0]["teacher"]["2"]
    keys = Counter(key.partition(".")[0] for key in weights(taught.run))
    assert keys == Counter(key.partition(".")[0] for key in weights(alone.run)), "a teacher is in no checkpoint"


def test_the_kl_from_a_teacher_is_torch_s_own() -> None:
    torch.manual_seed(0)
    logits_PBTV, teacher_BTV, frames_B = torch.randn(2, 3, 5, 7), torch.randn(3, 5, 7), torch.tensor([5, 2, 4])
    expected = torch.zeros(2)
    for path in range(2):
        for row, frames in enumerate(frames_B.tolist()):
            ours = (logits_PBTV[path, row, :frames] / 2).log_softmax(-1)
            theirs = (teacher_BTV[row, :frames] / 2).log_softmax(-1)
            expected[path] += 4 * torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    torch.testing.assert_close(taught_per_path(logits_PBTV, teacher_BTV, frames_B, 2.0), expected)


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "student")
    other = write_whisper(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<|de|>", "<|fr|>"))
    with pytest.raises(UserError, match=r"loss\.teacher: .* has other tokens than the corpus"):
        Teacher(str(other), student(folder), read_stock_tokenizer(str(folder)), torch.device("cpu"))


def student(folder: Path) -> PreTrainedModel:
    return load_stock(FAMILIES["whisper"], str(folder), read_config(str(folder)), seed=0)[0]


def test_a_teacher_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "student")
    other = write_moonshine(tmp_path / "other")
    with pytest.raises(UserError, match=r"loss\.teacher: .* is a moonshine, the student a whisper"):
        Teacher(str(other), student(folder), read_stock_tokenizer(str(folder)), torch.device("cpu"))


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"corpus": {"path": "x", "max_seconds": 12}}, r"corpus\.units: set it to checkpoint: whisper has the tokens"),
        ({"model": {"family": "wav2vec2"}, "fold": {"num_layers": 2, "depths": [2, 3]},
          "corpus": {"path": "x", "max_seconds": 12, "units": "checkpoint", "tokenizer": "x"}},
         r"corpus\.units: checkpoint is for models with a decoder"),
    ],
)  # fmt: skip
def test_tokens_of_another_kind_of_model_are_refused(sections: dict[str, Any], problem: str, tmp_path: Path) -> None:
    spec = spec_for_whisper(tmp_path / "whisper", **sections)
    with pytest.raises(UserError, match=problem):
        check_units(spec)


def test_tokens_of_another_checkpoint_are_refused(spoken: Path, tmp_path: Path) -> None:
    job = job_for_whisper(spoken, tmp_path)
    check_tokens(job.spec, read_manifest(job.corpus))
    other = write_whisper(tmp_path / "other", multilingual=True)
    spec = spec_for_whisper(other, str(spoken))
    with pytest.raises(UserError, match=r"corpus\.tokenizer: has other tokens than model\.checkpoint"):
        check_tokens(spec, read_manifest(job.corpus))


def test_an_utterance_that_its_speed_takes_beyond_the_window_is_refused(spoken: Path, tmp_path: Path) -> None:
    job = job_for_whisper(spoken, tmp_path)
    manifest = read_manifest(job.corpus)
    check_shortest(job.spec, job.corpus, manifest)
    longest = int(read_index(job.corpus, manifest, "train").num_samples.max()) / SAMPLE_RATE
    short = write_whisper(tmp_path / "short", seconds=math.ceil(longest))
    slow = spec_for_whisper(short, str(spoken), augment={"speeds": [0.5, 1.0]})
    with pytest.raises(UserError, match=r"corpus\.max_seconds: an utterance of 'train' takes .* at 0\.5 times"):
        check_shortest(slow, job.corpus, manifest)


def test_a_finished_run_is_its_last_checkpoint(spoken: Path, tmp_path: Path) -> None:
    job = job_for_whisper(spoken, tmp_path, optim={"lr": 1e-3, "steps": 3})
    trained = train_model(job, WorkerContext())
    finish_run(job, trained.final_steps, trained.attempt)
    model = Path(job.run, "model")
    names = {file.name for file in model.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"} <= names


def test_a_text_beyond_the_decoder_s_positions_is_quarantined(own_corpus: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (own_corpus / "train.jsonl").read_text().splitlines()]
    rows[0]["text"] = "abcdefgh " * 9  # each letter a token: 9 words of 9, of 64 positions
    (own_corpus / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = job_for_whisper(own_corpus, tmp_path)
    (entry,) = read_quarantine(job.corpus)
    assert (entry["reason"], entry["id"]) == ("too_many_tokens", rows[0]["id"])
    assert "of 64 positions" in entry["detail"]
