"""The built-in corpus: the same bytes every time, unseen speakers and sentences in the test split."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from foldray.data import builtin

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("espeakng_loader")

TRAIN_SECONDS, TEST_SECONDS = 60.0, 20.0  # enough for some of the voices whose breath is noise


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus"))


def write(folder: Path) -> Path:
    builtin.write_builtin_corpus(folder, train_minutes=TRAIN_SECONDS / 60, test_minutes=TEST_SECONDS / 60)
    return folder


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_arguments_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    assert digests(write(tmp_path)) == digests(corpus)


def test_durations_are_those_of_the_files(corpus: Path) -> None:
    for split, seconds in (("train", TRAIN_SECONDS), ("test", TEST_SECONDS)):
        for row in rows(corpus, split):
            info = soundfile.info(corpus / row["audio"])
            assert (info.samplerate, info.channels, info.subtype) == (builtin.SAMPLE_RATE, 1, "PCM_16")
            assert row["duration"] == pytest.approx(info.frames / info.samplerate, abs=1e-4)
            assert builtin.MIN_SECONDS <= row["duration"] <= builtin.MAX_SECONDS
        total = sum(row["duration"] for row in rows(corpus, split))
        assert seconds - 0.01 <= total <= seconds + builtin.MAX_SECONDS


def test_no_speaker_and_no_sentence_is_in_both_splits(corpus: Path) -> None:
    train, test = rows(corpus, "train"), rows(corpus, "test")
    for field in ("speaker", "text", "id"):
        assert not {row[field] for row in train} & {row[field] for row in test}
    assert not set(builtin.speakers("train")) & set(builtin.speakers("test"))
    assert len(builtin.speakers("train")) > 4 * len(builtin.speakers("test")) > 40


def test_the_manifests_come_last_and_leave_nothing_partial(corpus: Path) -> None:
    last_audio = max(path.stat().st_mtime_ns for path in corpus.rglob("*.flac"))
    assert all((corpus / f"{split}.jsonl").stat().st_mtime_ns >= last_audio for split in ("train", "test"))
    assert not list(corpus.rglob("*.partial"))


def test_texts_are_upper_case_words_of_the_vocabulary(corpus: Path) -> None:
    words = builtin.vocabulary()
    assert 60 <= len(words) <= 120
    assert all(word.isalpha() and word.isupper() for word in words)
    for row in rows(corpus, "train") + rows(corpus, "test"):
        assert set(row["text"].split()) <= words


def test_the_name_depends_on_every_argument_and_on_nothing_else() -> None:
    arguments = ((0, 46, 6), (1, 46, 6), (0, 45, 6), (0, 46, 5))
    names = [builtin.builtin_corpus_id(*values) for values in arguments]
    assert len(set(names)) == 4
    assert names[0] == builtin.builtin_corpus_id(0, 46.0, 6.0)


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"pip install 'foldray\[demo\]'"):
        write(tmp_path)
    assert not (tmp_path / "train.jsonl").exists()
