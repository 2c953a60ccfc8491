"""Rows as others write them: names of fields, values that are no strings, paths spelled otherwise, ids that repeat."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import Corpus, find_corpus
from foldray.data.layouts.fields import FIELD_NAMES
from foldray.data.manifest import read_index
from foldray.data.prepare import FIXES
from foldray.errors import UserError
from foldray.stages import prepare as stage
from tests.support.corpora import encode_wav, prepare_serially
from tests.support.corpus_writers import WRITERS, some_corpus

GOOD = {"audio": "a.wav", "text": "HELLO"}


def write_rows(folder: Path, splits: dict[str, list[dict[str, Any]]], **fields: Any) -> Corpus:
    """`<split>.jsonl` with empty-looking audio files beside them, and what is found."""
    folder.mkdir(exist_ok=True)
    (folder / "a.wav").write_bytes(b"RIFF")
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_corpus(CorpusSpec(path=str(folder), splits=tuple(splits), **fields), str(folder.parent / "store"))


# --- Fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "commonvoice"])
@pytest.mark.parametrize("field", ["text", "id", "speaker", "language"])
def test_every_layout_knows_the_same_names(kind: str, field: str, tmp_path: Path) -> None:
    names = FIELD_NAMES[field] if (kind, field) != ("commonvoice", "id") else ()
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        folder.mkdir()
        row: dict[str, Any] = {"text": "HELLO", name: "X"} if field != "text" else {name: "X"}
        if kind == "jsonl":
            (found,) = write_rows(folder, {"test": [{"audio": "a.wav", **row}]}).utterances
        elif kind == "commonvoice":
            table = {"path": "a.mp3", **row}
            (folder / "test.tsv").write_text("\t".join(table) + "\n" + "\t".join(table.values()) + "\n")
            (folder / "clips").mkdir()
            (found,) = find_corpus(CorpusSpec(path=str(folder), splits=("test",)), str(tmp_path)).utterances
        else:
            pq.write_table(pa.Table.from_pylist([{"audio": b"RIFF", **row}]), folder / "test.parquet")
            (found,) = find_corpus(CorpusSpec(path=str(folder), splits=("test",)), str(tmp_path)).utterances
        assert getattr(found, field) == "X"


@pytest.mark.parametrize("audio", ["audio", "audio_filepath", "audio_filename", "path", "file", "file_name"])
def test_every_name_of_audio(audio: str, tmp_path: Path) -> None:
    for value in ("a.wav", {"bytes": None, "path": "a.wav"}, {"path": "a.wav"}):
        (found,) = write_rows(tmp_path / "c", {"test": [{audio: value, "transcription": "X"}]}).utterances
        assert (found.audio, found.bytes, found.text) == (f"{tmp_path}/c/a.wav", 4, "X")


@pytest.mark.parametrize(
    ("audio", "detail"),
    [
        ({"bytes": "UklGRg==", "path": "a.wav"}, "has its audio as bytes"),
        ({"bytes": None, "path": None}, "has an object without a path"),
        (["a.wav"], "is not the path of a file"),
        (7, "is not the path of a file"),
    ],
)
def test_audio_that_is_no_path_is_named(audio: object, detail: str, tmp_path: Path) -> None:
    (found,) = write_rows(tmp_path / "c", {"test": [{"audio": audio, "text": "X"}]}).utterances
    assert found.problem
    assert found.problem[0] == "bad_metadata"
    assert detail in found.problem[1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("text", "name"),
    [
        (["a", "b"], "a list"),
        (911, "a number"),
        (1.5, "a number"),
        ({"raw": "a"}, "an object"),
        (True, "a truth value"),
    ],
)
def test_a_text_that_is_no_string_is_set_aside(kind: str, text: object, name: str, tmp_path: Path) -> None:
    if kind == "jsonl":
        (found,) = write_rows(tmp_path / "c", {"test": [{"id": "x", "audio": "a.wav", "text": text}]}).utterances
    else:
        pq.write_table(pa.Table.from_pylist([{"id": "x", "audio": b"RIFF", "text": text}]), tmp_path / "test.parquet")
        (found,) = find_corpus(CorpusSpec(path=str(tmp_path), splits=("test",)), str(tmp_path)).utterances
    assert found.id == "x"
    assert found.problem
    assert found.problem[0] == "bad_text"
    assert found.problem[1].startswith(f"the text is {name} (")


def test_zero_is_an_id_and_a_speaker(tmp_path: Path) -> None:
    (found,) = write_rows(tmp_path / "c", {"test": [{**GOOD, "id": 0, "speaker": 0}]}).utterances
    assert (found.id, found.speaker) == ("0", "0")


def test_a_manifest_may_be_one_array(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": "x"}, 5, {**GOOD, "id": "y"}]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "test.json").write_text(json.dumps(rows, indent=1), encoding="utf-16")
    found = find_corpus(CorpusSpec(path=str(tmp_path / "c"), splits=("test",)), str(tmp_path)).utterances
    assert [u.id for u in found] == ["x", "test.json:2", "y"]
    assert [u.problem and u.problem[0] for u in found] == [None, "bad_metadata", None]


# --- Paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ("ünï/Ångström é.wav", "ünï/Ångström é.wav"),
        ("sub/x.wav", "sub\\x.wav"),
        ("sub/x.wav", "other\\..\\sub\\x.wav"),
        ("sub/x.mp3", "sub/x"),
        ("ünï.wav", "ünï"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_another_spelling_finds_its_file(stored: str, named: str, form: Any, tmp_path: Path) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    file = tmp_path / "c" / unicodedata.normalize(form, stored)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"RIFF")
    row = {"audio": unicodedata.normalize(other, named), "text": "X"}  # type: ignore[arg-type]
    (found,) = write_rows(tmp_path / "c", {"test": [row]}).utterances
    assert (found.audio, found.bytes) == (str(file), 4)


def test_a_file_of_the_exact_name_comes_first_and_two_twins_are_none(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in ("ü.wav", unicodedata.normalize("NFD", "ü.wav"), "x.wav", "x.mp3"):
        (tmp_path / "c" / name).write_bytes(b"RIFF")
    exact, unclear = write_rows(
        tmp_path / "c", {"test": [{"audio": n, "text": "X"} for n in ("ü.wav", "x")]}
    ).utterances
    assert (exact.audio, exact.bytes) == (f"{tmp_path}/c/ü.wav", 4)
    assert unclear.bytes is None


@pytest.mark.parametrize("name", ["kaldi", "folder", "librispeech", "webdataset"])
def test_texts_and_audio_meet_whatever_the_form_of_their_names(name: str, tmp_path: Path) -> None:
    nfc, nfd = "é-1-0000", unicodedata.normalize("NFD", "é-1-0000")
    item = some_corpus(speakers=1, each=1, seconds=0.05)[0]._replace(id=nfd, speaker="s", split="test")
    WRITERS[name](tmp_path / "c", [item])
    for file in sorted((tmp_path / "c").rglob("*")):
        if file.name in ("text", "é-1.trans.txt", unicodedata.normalize("NFD", "é-1.trans.txt")):
            file.write_text(file.read_text().replace(nfd, nfc))
        elif file.suffix == ".txt":
            file.rename(file.with_name(f"{nfc}.txt"))
    found = find_corpus(CorpusSpec(path=str(tmp_path / "c"), splits=("test",)), str(tmp_path)).utterances
    assert [(u.problem, u.text) for u in found] == [(None, item.text)]


def test_a_table_of_an_audiofolder_is_named(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,transcription\na.wav,HI\n")
    (found,) = find_corpus(CorpusSpec(path=str(tmp_path), splits=("test",)), str(tmp_path)).utterances
    assert found.problem
    assert found.problem[1].endswith("; write metadata.csv as metadata.jsonl in the folder of its split")


# --- Ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "webdataset", "jsonl", "nemo", "kaldi", "librispeech", "parquet"])
def test_ids_that_begin_anew_in_each_split_lose_nothing(name: str, tmp_path: Path) -> None:
    items = some_corpus(seconds=0.05)
    numbers = {split: [i for i in items if i.split == split] for split in ("train", "valid", "test")}
    anew = [item._replace(id=f"1-1-{n:04d}", speaker="1") for part in numbers.values() for n, item in enumerate(part)]
    for split in numbers:  # a folder a split, so that relative paths repeat too
        WRITERS[name](tmp_path / split, [item for item in anew if item.split == split])
    sources = {"librispeech": ("train/train-clean-100", "valid/dev-clean", "test/test-clean")}
    default = {"folder": "{0}/{0}", "kaldi": "{0}/{0}", "parquet": "{0}/data/{0}"}.get(name, "{0}/{0}")
    parts = sources.get(name) or tuple(default.format(split) for split in numbers)
    splits = tuple(f"{split}={part}" for split, part in zip(numbers, parts, strict=True))
    corpus = find_corpus(CorpusSpec(path=str(tmp_path), splits=splits), str(tmp_path / "store"))
    assert len({u.id for u in corpus.utterances}) == len(items) == len(corpus.utterances)
    assert {(u.split, u.id.split("/")[0]) for u in corpus.utterances} == {(split, split) for split in numbers}
    assert corpus.note
    assert corpus.note.endswith("; every id begins with its split")


def test_the_same_audio_in_two_splits_is_a_duplicate(tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "c", {"train": [GOOD], "test": [GOOD]})
    assert [u.id for u in corpus.utterances] == ["a", "a"]
    assert corpus.note is None


def test_parts_of_a_split_may_number_anew(tmp_path: Path) -> None:
    for part in ("A", "B"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.wav").write_bytes(b"RIFF")
        (tmp_path / part / "0.txt").write_text(part)
    corpus = find_corpus(CorpusSpec(path=str(tmp_path), splits=("test=A+B",)), str(tmp_path))
    assert [(u.id, u.text) for u in corpus.utterances] == [("A/0", "A"), ("B/0", "B")]


def test_rows_that_cannot_be_used_change_no_ids(tmp_path: Path) -> None:
    corpus = write_rows(tmp_path / "c", {"train": [GOOD, {"id": "x"}], "test": [{**GOOD, "id": "b"}, {"id": "x"}]})
    assert [u.id for u in corpus.utterances if not u.problem] == ["a", "b"]


def spoken(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    folder.mkdir()
    tone = 0.3 * np.sin(np.arange(16_000) * 0.05)
    for name in {row["audio"] for rows in splits.values() for row in rows} - {"missing.wav"}:
        (folder / name).write_bytes(encode_wav(tone))
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    good = [{"audio": f"{i}.wav", "text": "HELLO"} for i in range(30)]
    spoken(tmp_path / "c", {"train": good, "dev": [good[0]], "test": [{"audio": "t.wav", "text": "HELLO"}]})
    message = r"no usable utterances in 'valid' \(1 duplicate_id\); give every utterance an id of its own"
    with pytest.raises(UserError, match=message):
        prepare_serially(CorpusSpec(path=str(tmp_path / "c")), tmp_path / "store")


def test_a_higher_limit_is_no_answer_to_repeated_ids(tmp_path: Path) -> None:
    rows = [{"id": "x", "audio": "0.wav", "text": "HELLO"}] * 9
    spoken(tmp_path / "c", {"test": rows})
    with pytest.raises(UserError, match=r"8 of 9 .*quarantine.parquet; give every utterance an id of its own$"):
        prepare_serially(CorpusSpec(path=str(tmp_path / "c"), splits=("test",)), tmp_path / "store")
    assert "duplicate_id" in FIXES


# --- What normalisation leaves out -----------------------------------------------------------------


def test_what_is_left_out_is_in_the_manifest_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["call 911 at 5 pm", "\u043c\u0438\u0440 and 9%", "plain"]
    spoken(tmp_path / "c", {"test": [{"audio": f"{i}.wav", "text": text} for i, text in enumerate(texts)]})
    spec = CorpusSpec(path=str(tmp_path / "c"), splits=("test",))
    _, manifest = prepare_serially(spec, tmp_path / "store")
    left = manifest.left_out
    assert (left.utterances, left.words, left.letters, left.digits, left.signs) == (2, 4, 3, 5, 1)
    assert list(left.characters.items())[:2] == [("1", 2), ("9", 2)]
    monkeypatch.setattr("foldray.data.prepare.start_ray", lambda cpus: pytest.fail("it is prepared already"))
    stage.prepare_corpus(spec, str(tmp_path / "store"))
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "left out 5 digits, 3 letters, 1 signs, 4 whole words of 2 utterances: 1 (2) 9 (2)" in printed


def test_a_segment_to_the_end_of_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "c" / "test"
    folder.mkdir(parents=True)
    (folder / "r.wav").write_bytes(encode_wav(0.3 * np.sin(np.arange(48_000) * 0.05)))
    (folder / "wav.scp").write_text("r r.wav\n")
    (folder / "segments").write_text("a r 1.0 -1\nb r 2.0 3.04\nc r 4 -1\n")
    (folder / "text").write_text("a ONE\nb TWO\nc THREE\n")
    spec = CorpusSpec(path=str(tmp_path / "c"), splits=("test",), max_quarantine=0.5)
    prepared, manifest = prepare_serially(spec, tmp_path / "store")
    index = read_index(prepared, manifest, "test")
    assert dict(zip(index.ids.to_pylist(), index.num_samples.tolist(), strict=True)) == {"a": 32_000, "b": 16_000}
    assert manifest.reasons == {"truncated": 1}
