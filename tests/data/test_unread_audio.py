"""Recordings in formats that are not decoded are named, in whatever layout they lie."""

import json
from pathlib import Path

import numpy as np
import pytest

from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import find_corpus
from foldray.errors import UserError
from tests.support import corpus_writers
from tests.support.corpora import encode_wav, prepare_serially
from tests.support.corpus_writers import WRITERS, some_corpus, write_folder

M4A = b"\0\0\0\x1cftypM4A \0\0\2\0" + bytes(3000)
ITEMS = some_corpus(speakers=3, each=1)


@pytest.mark.parametrize("name", ["jsonl", "nemo", "kaldi", "commonvoice", "folder", "webdataset", "parquet"])
def test_m4a_is_named_with_a_fix_in_every_layout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_writers, "encode", lambda item, ending=None: M4A)
    WRITERS[name](tmp_path / "phone", [item._replace(ending="m4a") for item in ITEMS])
    with pytest.raises(UserError, match=r"3 of 3 .* \(3 unsupported_format\).*; write the audio as FLAC or OGG"):
        prepare_serially(CorpusSpec(path=str(tmp_path / "phone")), tmp_path / "store")


def test_a_film_without_a_text_and_the_original_of_a_readable_file_are_no_utterances(tmp_path: Path) -> None:
    write_folder(tmp_path, ITEMS)
    for item in ITEMS:
        (tmp_path / item.split / item.speaker / f"{item.id}.m4a").write_bytes(M4A)
        (tmp_path / item.split / "film.mp4").write_bytes(M4A)
    spec = CorpusSpec(path=str(tmp_path))
    found = find_corpus(spec, str(tmp_path / "store")).utterances
    assert sorted(Path(each.audio).suffix for each in found) == sorted(f".{item.ending}" for item in ITEMS)


def test_a_row_may_name_its_channel(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(np.arange(16_000) * 0.05)
    (tmp_path / "a.wav").write_bytes(encode_wav(np.stack([tone, -tone], 1)))
    channels = ({}, {"channel": 0}, {"channel": 1}, {"channel": 2}, {"channel": "left"})
    rows = [json.dumps({"audio": "a.wav", "text": "A", **channel}) for channel in channels]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    spec = CorpusSpec(path=str(tmp_path), splits=("test",), max_quarantine=1)
    manifest = prepare_serially(spec, tmp_path / "store")[1]
    assert manifest.rows_by_split == {"test": 2}
    assert manifest.reasons == {"antiphase": 1, "no_such_channel": 1, "bad_metadata": 1}
