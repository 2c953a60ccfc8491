"""Texts in other encodings: those with a byte order mark are read, all others are set aside by row and named."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import find_corpus
from foldray.errors import UserError
from foldray.storage.text import NotTextError, decode_text, split_lines
from tests.support.corpus_writers import add_member

TEXT = "Brücke ŁÓDŹ \u0928\u092e \U0001f600"
Write = Callable[[Path, bytes], None]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_with_a_mark_gives_the_same_text(encoding: str) -> None:
    assert decode_text(TEXT.encode(encoding)) == TEXT
    data = f"{TEXT}\r\n\r\n{TEXT}\n".encode(encoding)
    assert [(line.number, line.text, line.problem) for line in split_lines(data, "a")] == [
        (1, TEXT, None),
        (3, TEXT, None),
    ]


def test_big_endian_marks() -> None:
    assert decode_text(b"\xfe\xff" + TEXT.encode("utf-16-be")) == TEXT
    assert decode_text(b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be")) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Brücke".encode("latin-1"), "byte 0xfc at position 3 is not UTF-8; convert the file with `iconv"),
        ("Hello".encode("utf-16-le"), "holds NUL bytes, as UTF-16 without a byte order mark does"),
        (b"\xff\xfea\x00b", "begins as UTF-16 but byte 5 is not"),
        (b"\xed\xa0\x80", "byte 0xed at position 1 is not UTF-8"),
    ],
)
def test_what_is_no_text_is_named(data: bytes, message: str) -> None:
    with pytest.raises(NotTextError, match=message):
        decode_text(data)


def test_a_wide_file_without_a_mark_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^a.jsonl: holds NUL bytes"):
        list(split_lines("{}\n{}\n".encode("utf-16-le"), "a.jsonl"))


# --- Layouts ---------------------------------------------------------------------------------------


def _jsonl(folder: Path, text: bytes) -> None:
    (folder / "test.jsonl").write_bytes(b'{"id": "bad", "audio": "bad.wav", "text": "' + text + b'"}\n')
    with (folder / "test.jsonl").open("ab") as file:
        file.write(json.dumps({"id": "good", "audio": "good.wav", "text": "HI"}).encode())


def _commonvoice(folder: Path, text: bytes) -> None:
    (folder / "clips").mkdir()
    (folder / "test.tsv").write_bytes(b"path\tsentence\nbad.mp3\t" + text + b"\ngood.mp3\tHI\n")


def _kaldi(folder: Path, text: bytes) -> None:
    (folder / "test").mkdir()
    (folder / "test" / "wav.scp").write_text("bad bad.wav\ngood good.wav\n")
    (folder / "test" / "text").write_bytes(b"bad " + text + b"\ngood HI\n")


def _folder(folder: Path, text: bytes) -> None:
    (folder / "test").mkdir()
    for name, data in (("bad", text), ("good", b"HI")):
        (folder / "test" / f"{name}.wav").write_bytes(b"RIFF")
        (folder / "test" / f"{name}.txt").write_bytes(data)


def _librispeech(folder: Path, text: bytes) -> None:
    chapter = folder / "test-clean" / "1" / "2"
    chapter.mkdir(parents=True)
    for name in ("bad", "good"):
        (chapter / f"{name}.flac").write_bytes(b"fLaC")
    (chapter / "1-2.trans.txt").write_bytes(b"bad " + text + b"\ngood HI\n")


def _webdataset(folder: Path, text: bytes) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data in (("bad", text), ("good", b"HI")):
            add_member(tar, f"{name}.wav", b"RIFF")
            add_member(tar, f"{name}.txt", data)
    (folder / "test.tar").write_bytes(target.getvalue())


@pytest.mark.parametrize("write", [_jsonl, _commonvoice, _kaldi, _folder, _librispeech, _webdataset])
def test_a_row_that_is_not_utf8_is_set_aside_and_the_others_stay(write: Write, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    write(tmp_path / "c", "Brücke".encode("latin-1"))
    spec = CorpusSpec(path=str(tmp_path / "c"), splits=("test",))
    bad, good = sorted(find_corpus(spec, str(tmp_path)).utterances, key=lambda u: u.text == "HI")
    assert good.problem is None
    assert bad.problem
    assert bad.problem[0] == "not_utf8"
    assert "byte 0xfc at position " in bad.problem[1]


@pytest.mark.parametrize("write", [_folder, _webdataset])
def test_texts_beside_audio_may_be_utf16(write: Write, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    write(tmp_path / "c", "Brücke\r\n".encode("utf-16"))
    found = find_corpus(CorpusSpec(path=str(tmp_path / "c"), splits=("test",)), str(tmp_path))
    assert {u.id: u.text for u in found.utterances} == {"bad": "Brücke", "good": "HI"}


@pytest.mark.parametrize("name", ["utt2spk", "segments", "wav.scp"])
def test_a_kaldi_table_that_is_not_utf8_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    _kaldi(tmp_path / "c", b"HI")
    (tmp_path / "c" / "test" / name).write_bytes(b"a b 0 1\nbad \xfc 0 1\n")
    with pytest.raises(UserError, match=rf"test/{name}:2: byte 0xfc at position 5 is not UTF-8; convert"):
        find_corpus(CorpusSpec(path=str(tmp_path / "c"), splits=("test",)), str(tmp_path))
