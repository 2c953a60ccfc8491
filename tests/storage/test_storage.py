"""Files are whole or not there; what cannot be a store is refused."""

from pathlib import Path

import pytest

from foldray import storage
from foldray.errors import UserError


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
