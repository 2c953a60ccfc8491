"""`foldray.storage` on local folders: atomic writes, missing files, unsupported locations."""

from pathlib import Path

import pytest

from foldray import storage
from foldray.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "file.json"
    storage.write_bytes(str(file), b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(str(file), b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_missing_local_files_and_folders(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert not storage.exists(nowhere)
    assert not storage.is_folder(nowhere)
    assert storage.list_files(nowhere) == storage.list_folders(nowhere) == []
    assert storage.file_sizes([nowhere]) == [None]
    for name in ("x" * 5000, "a\0b"):
        assert not storage.exists(name), "no file has such a name"
        assert not storage.is_folder(name)
    storage.remove(nowhere)
    storage.remove_folder(nowhere)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(nowhere)
    with pytest.raises(UserError, match=r"nope://x/y: is not a supported location"):
        storage.exists("nope://x/y")


def test_a_store_without_write_permission_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"storage.root: cannot write to .*/file/store"):
        storage.check_writable(str(tmp_path / "file" / "store"), "storage.root")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s3:/bucket/x", "s3://", "hdfs://h/x"])
def test_unsupported_locations_are_refused_without_a_request(uri: str) -> None:
    for operation in (storage.absolute, storage.exists, storage.list_tree, storage.read_bytes):
        with pytest.raises(UserError, match="is not a supported location; use a folder or s3://bucket/prefix"):
            operation(uri)


def test_links_to_folders_are_followed_without_cycles(tmp_path: Path) -> None:
    (tmp_path / "data" / "audio").mkdir(parents=True)
    (tmp_path / "data" / "audio" / "a.wav").write_bytes(b"1")
    (tmp_path / "linked").symlink_to(tmp_path / "data" / "audio")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    assert storage.list_tree(str(tmp_path / "linked")) == {"a.wav": 1}
    assert set(storage.list_tree(str(tmp_path))) >= {"data/audio/a.wav", "linked/a.wav"}
    assert len(storage.list_tree(str(tmp_path))) <= 4
