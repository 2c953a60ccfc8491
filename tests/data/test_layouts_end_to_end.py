"""The built-in voices written in every layout and format prepare to the same utterances, from a folder and from S3."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.data.audio import decode_flac
from foldray.data.manifest import Manifest, read_index, read_quarantine
from foldray.data.reader import RowReader
from tests.support.corpora import prepare_serially
from tests.support.corpus_writers import FORMATS, LAYOUT_OF, RATES, WRITERS, Item

pytest_plugins = ["tests.support.s3_server"]

Heard = dict[str, tuple[str, str, str, int]]


@pytest.fixture(scope="module")
def voices(spoken: Path) -> list[Item]:
    """Thirty spoken utterances, six speakers, every format, at the rate of each."""
    items: list[Item] = []
    numbers: dict[str, int] = {}
    for split, count in (("train", 24), ("test", 6)):
        for line in (spoken / f"{split}.jsonl").read_text().splitlines()[:count]:
            row = json.loads(line)
            speaker = str(1001 + numbers.setdefault(row["speaker"], len(numbers)) % 6 + 10 * (split == "test"))
            samples_T, rate = soundfile.read(spoken / row["audio"], dtype="float32")
            ending = list(FORMATS)[len(items) % len(FORMATS)]
            at_rate_T = torchaudio.functional.resample(torch.from_numpy(samples_T), rate, RATES[ending]).numpy()
            samples_TC = np.clip(np.stack([at_rate_T] * (1 + len(items) % 2), axis=1), -1, 1)
            name = f"{speaker}-1-{len(items):04d}"
            items.append(Item(name, split, speaker, row["text"], samples_TC, RATES[ending], ending))
    return items


@pytest.mark.main
def test_shards_with_quarantine_are_the_same_bytes_wherever_the_corpus_lies(
    voices: list[Item], s3_store: str, tmp_path: Path
) -> None:
    """Its entries are in the shards, with places told from the corpus folder."""
    corpus = tmp_path / "corpus"
    WRITERS["jsonl"](corpus, voices)
    with (corpus / "train.jsonl").open("a") as manifest:
        manifest.write(json.dumps({"id": "broken", "audio": "who?.wav", "text": "HELLO", "duration": 1.0}) + "\n")
    (corpus / "who?.wav").write_bytes(b"no audio at all")
    storage.upload(corpus, f"{s3_store}/corpus")
    host = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    places = [str(corpus), f"{s3_store}/corpus", f"{s3_store}/corpus?endpoint_override={host}&scheme=http"]
    found = [prepared_from(place, tmp_path / str(i), "auto") for i, place in enumerate(places)]
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[0][2].shards == found[1][2].shards == found[2][2].shards
    for _, folder, prepared in found:
        assert prepared.reasons == {"unreadable": 1}
        entry = read_quarantine(folder)[0]
        assert entry["source"].startswith("train.jsonl:")


def prepared_from(path: str, store: Path, layout: str) -> tuple[Heard, str, Manifest]:
    """What a corpus prepares to: split, speaker, text and samples by the last part of the id."""
    spec = CorpusSpec(path=path, layout=layout, splits=("train", "test"), valid_fraction=0.0)  # type: ignore[arg-type]
    folder, manifest = prepare_serially(spec, store)
    heard: Heard = {}
    for split in ("train", "test"):
        index = read_index(folder, manifest, split)
        read = RowReader(index)
        for position, name in enumerate(index.ids.to_pylist()):
            row = read(position)
            assert len(decode_flac(row["audio"])) == index.num_samples[position]
            speaker = name.rsplit("/", 1)[-1].split("-")[0]
            heard[name.rsplit("/", 1)[-1]] = split, speaker, row["text"], int(index.num_samples[position])
    return heard, folder, manifest


@pytest.mark.main
@pytest.mark.parametrize("name", WRITERS)
def test_a_layout_prepares_to_the_same_utterances_from_a_folder_and_from_s3(
    name: str, voices: list[Item], s3_store: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / "corpus", voices)
    here, _, manifest = prepared_from(str(tmp_path / "corpus"), tmp_path / "store", "auto")
    assert manifest.layout == LAYOUT_OF[name]
    assert (manifest.utterances_in, manifest.utterances_out, manifest.quarantined) == (len(voices), len(voices), 0)
    for item in voices:
        split, speaker, text, samples = here[item.id]
        assert (split, speaker, text) == (item.split, item.speaker, item.text)
        assert samples / 16_000 == pytest.approx(len(item.samples) / item.rate, abs=0.11)  # MP3 pads
    storage.upload(tmp_path / "corpus", f"{s3_store}/corpus")
    there, _, again = prepared_from(f"{s3_store}/corpus", tmp_path / "other", "auto")
    assert there == here
    assert again.shards == manifest.shards, "the same bytes, wherever the corpus lay"
