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


def test_a_name_may_be_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    """https://github.com/yt-dlp/yt-dlp/issues/1786: titles are cut to 255 bytes."""
    for name in ("x" * 255, "ü" * 127, "\U0001f600" * 63):
        storage.write_bytes(str(tmp_path / name), b"a")
        assert not storage.create(str(tmp_path / name), b"b")
        assert storage.read_bytes(str(tmp_path / name)) == b"a"
    assert len(storage.list_files(str(tmp_path))) == 3


def test_every_key_has_a_uri_of_its_own() -> None:
    """https://github.com/apache/arrow/issues/35714: keys that hold percent codes themselves."""
    keys = ["what?", "what%3F", "what%253F", "what%25253F", "%3F%253F?", "a%3Ab", "a%20b", "100%", "%25", "%3f"]
    uris = [storage.join("s3://b/x?anonymous=true", key) for key in keys]
    assert [storage.filesystem_path(uri) for uri in uris] == [f"b/x/{key}" for key in keys]
    assert len({*uris}) == len(keys)
    assert uris[:2] == ["s3://b/x/what%3F?anonymous=true", "s3://b/x/what%253F?anonymous=true"]
