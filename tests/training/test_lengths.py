"""Utterances too short for a model are refused before any worker starts."""

import json
from pathlib import Path

import numpy as np
import pytest

from foldray.config.corpus import CorpusSpec
from foldray.data.manifest import Manifest
from foldray.errors import UserError
from foldray.stages.train import train_prepared
from foldray.training.lengths import check_shortest
from tests.support.corpora import encode_wav, prepare_serially
from tests.support.training import spec_for


def prepared_of(folder: Path, lengths: dict[str, int]) -> tuple[str, Manifest]:
    """A corpus of one utterance a split, of so many samples."""
    for split, samples in lengths.items():
        (folder / f"{split}.wav").write_bytes(encode_wav(0.3 * np.sin(np.arange(1, samples + 1) * 0.05)))
        (folder / f"{split}.jsonl").write_text(json.dumps({"audio": f"{split}.wav", "text": "A", "speaker": split}))
    spec = CorpusSpec(path=str(folder), min_seconds=0.001, frame_seconds=0.001, valid_fraction=0)
    return prepare_serially(spec, folder / "store")


def test_an_utterance_shorter_than_a_mask_is_refused_before_workers_start(tmp_path: Path) -> None:
    corpus, manifest = prepared_of(tmp_path, {"train": 1_440, "test": 16_000})
    spec = spec_for("wav2vec2", 1)
    masked = {**spec.model.config, "mask_time_prob": 0.05}
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"config": masked})})
    message = r"model.config.mask_time_length: 10 frames are more than the shortest utterance has \(\d\); lower it, or"
    with pytest.raises(UserError, match=message):
        train_prepared(spec, corpus)
    assert not list(tmp_path.rglob("spec.json")), "no run was begun"
    unmasked = {**spec.model.config, "mask_time_prob": 0.0}
    check_shortest(
        spec.model_copy(update={"model": spec.model.model_copy(update={"config": unmasked})}), corpus, manifest
    )


def test_an_utterance_that_gives_no_frame_is_refused_in_every_split(tmp_path: Path) -> None:
    corpus, manifest = prepared_of(tmp_path, {"train": 16_000, "test": 80})
    with pytest.raises(
        UserError, match=r"corpus.min_seconds: an utterance of 'test' with 0.005 s gives the model no frame"
    ):
        check_shortest(spec_for("sew", 1), corpus, manifest)
