"""Text normalisation, the character vocabulary, and files that are whole or not there."""

from pathlib import Path

import pytest

from foldray import storage
from foldray.data.text import normalise
from foldray.errors import UserError
from foldray.models.tokenizer import character_tokenizer
from foldray.results.metrics import read_metrics, write_metrics


@pytest.mark.parametrize(
    ("text", "profile", "expected"),
    [
        ("Hello,  world!", "english", "HELLO WORLD"),
        ("it\u2019s O`Clock", "english", "IT'S O'CLOCK"),
        ("na\u00efve caf\u00e9", "english", "NAIVE CAFE"),
        ("route 66", "english", "ROUTE"),
        ("' '' -", "english", ""),
        ("Stra\u00dfe 12", "unicode", "STRASSE 12"),
        ("Caf\u00e9, 12!", "unicode_lower", "caf\u00e9 12"),
        ("Don\u2019t  STOP", "english_lower", "don't stop"),
        ("Ain't it, Zo\u00eb?  Yes.", "as_is", "Ain't it, Zo\u00eb? Yes."),
        ("\u043c\u0438\u0440, \u043c\u0438\u0440", "unicode", "\u041c\u0418\u0420 \u041c\u0418\u0420"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "unicode", "\u0928\u092e\u0938\u094d\u0924\u0947"),
    ],
)  # fmt: skip
def test_normalisation(text: str, profile: str, expected: str) -> None:
    assert normalise(text, profile) == expected  # type: ignore[arg-type]
    assert normalise(expected, profile) == expected  # type: ignore[arg-type]


def test_text_survives_characters() -> None:
    tokenizer = character_tokenizer(["CAB A", "DAB'S"])
    assert tokenizer.vocabulary == ["<pad>", "<unk>", "|", "'", "A", "B", "C", "D", "S"]
    assert tokenizer.decode(tokenizer.encode("A DAB'S CAB")) == "A DAB'S CAB"
    assert tokenizer.encode("AZ") == [4, 1]
    assert tokenizer.decode([0, 2, 4, 1, 2, 2, 5, 0]) == "A B"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep" / "file.json"
    storage.write_bytes(str(file), b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(str(file), b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_what_is_not_there(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert not storage.exists(nowhere)
    assert not storage.is_folder(nowhere)
    assert storage.list_files(nowhere) == storage.list_folders(nowhere) == []
    assert storage.file_sizes([nowhere]) == [None]
    storage.remove(nowhere)
    storage.remove_folder(nowhere)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(nowhere)
    with pytest.raises(UserError, match=r"nope://x/y: is no place foldray can use"):
        storage.exists("nope://x/y")


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"storage.root: cannot write to .*/file/store"):
        storage.check_writable(str(tmp_path / "file" / "store"), "storage.root")


def test_metrics_parts_merge_by_step_and_the_later_attempt_wins(tmp_path: Path) -> None:
    run = str(tmp_path)
    write_metrics(run, "2026a", [{"step": 1, "by": "a"}, {"step": 2, "by": "a"}])
    write_metrics(run, "2026a", [{"step": 3, "by": "a"}])
    write_metrics(run, "2026b", [{"step": 3, "by": "b"}, {"step": 4, "by": "b"}])
    assert [(r["step"], r["by"]) for r in read_metrics(run)] == [(1, "a"), (2, "a"), (3, "b"), (4, "b")]


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s3:/bucket/x", "s3://", "hdfs://h/x"])
def test_places_that_are_neither_a_folder_nor_a_bucket_are_refused_at_once(uri: str) -> None:
    for verb in (storage.absolute, storage.exists, storage.list_tree, storage.read_bytes):
        with pytest.raises(UserError, match="is no place foldray can use; give a folder or s3://bucket/prefix"):
            verb(uri)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "data" / "audio").mkdir(parents=True)
    (tmp_path / "data" / "audio" / "a.wav").write_bytes(b"1")
    (tmp_path / "linked").symlink_to(tmp_path / "data" / "audio")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    assert storage.list_tree(str(tmp_path / "linked")) == {"a.wav": 1}
    assert set(storage.list_tree(str(tmp_path))) >= {"data/audio/a.wav", "linked/a.wav"}
    assert len(storage.list_tree(str(tmp_path))) <= 4
