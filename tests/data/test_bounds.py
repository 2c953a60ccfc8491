"""What a source may cost: links, line lengths, sidecars, archive headers; and what YAML may become."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from foldray.config.corpus import CorpusSpec
from foldray.config.load import apply_overrides, read_spec_file
from foldray.data.corpora import find_corpus
from foldray.data.layouts import SourceFolder
from foldray.data.layouts.cuts import read_lhotse
from foldray.data.layouts.manifests import read_jsonl
from foldray.data.layouts.tars import read_webdataset
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage import text

SECRET = "MY SECRET"


def _find(folder: Path, **fields: object) -> list[Utterance]:
    spec = CorpusSpec.model_validate({"path": str(folder), "splits": ("train",), **fields})
    return find_corpus(spec, str(folder.parent / "store")).utterances


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder `corpus/train` with a.wav, and a secret file beside the corpus."""
    (tmp_path / "corpus/train").mkdir(parents=True)
    (tmp_path / "corpus/train/a.wav").write_bytes(b"RIFF")
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return tmp_path / "corpus"


def test_a_text_that_is_a_link_out_of_the_corpus_is_not_read(corpus: Path) -> None:
    (corpus / "train/a.txt").symlink_to(corpus.parent / "secret")
    (utterance,) = _find(corpus, layout="folder")
    assert utterance.text is None
    assert utterance.problem
    assert utterance.problem[0] == "unsafe_path"
    assert utterance.problem[1].endswith("outside the corpus; set corpus.follow_links=true")
    (followed,) = _find(corpus, layout="folder", follow_links=True)
    assert (followed.text, followed.problem) == (SECRET, None)


def test_a_folder_that_is_a_link_out_of_the_corpus_has_no_texts(corpus: Path) -> None:
    os.renames(corpus / "train/a.wav", corpus.parent / "other/a.wav")
    corpus.mkdir(exist_ok=True)
    (corpus.parent / "other/a.txt").write_text(SECRET)
    (corpus / "train").symlink_to(corpus.parent / "other")
    (utterance,) = _find(corpus, layout="folder")
    assert utterance.problem
    assert utterance.problem[0] == "unsafe_path"


def test_links_inside_the_corpus_and_to_audio_are_followed(corpus: Path) -> None:
    (corpus.parent / "cache").mkdir()
    (corpus / "train/a.wav").rename(corpus.parent / "cache/x")
    (corpus / "train/a.wav").symlink_to(corpus.parent / "cache/x")
    (corpus / "texts").write_text("A B")
    (corpus / "train/a.txt").symlink_to(corpus / "texts")
    linked = corpus.parent / "linked"
    linked.symlink_to(corpus)
    for folder in (corpus, linked):
        (utterance,) = _find(folder, layout="folder")
        assert (utterance.text, utterance.problem) == ("A B", None)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("jsonl", "train.jsonl"), ("kaldi", "train/text"), ("commonvoice", "train.tsv"),
        ("librispeech", "train/1/2/1-2.trans.txt"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_a_link_out_of_the_corpus_is_refused(layout: str, name: str, corpus: Path) -> None:
    (corpus / name).parent.mkdir(parents=True, exist_ok=True)
    (corpus / name).symlink_to(corpus.parent / "secret")
    (corpus / "clips").mkdir()
    (corpus / "train/wav.scp").write_text("a a.wav\n")
    with pytest.raises(UserError, match=r"is a link to .+secret, outside the corpus; set corpus\.follow_links=true"):
        _find(corpus, layout=layout)


def test_a_long_text_file_is_quarantined_unread(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus / "train/a.txt").write_text("A")
    with (corpus / "train/a.txt").open("r+b") as file:
        file.truncate(5 * 2**30)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read {path}"))
    (utterance,) = _find(corpus, layout="folder")
    assert utterance.problem == ("bad_metadata", "train/a.txt has 5,368,709,120 bytes, over 1,048,576")


def test_a_long_line_is_one_bad_row(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_LINE_BYTES", 100)
    rows = [{"audio": "train/a.wav", "text": "A" * 200}, {"audio": "train/a.wav", "text": "B"}]
    (corpus / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long, short = read_jsonl(str(corpus / "train.jsonl"), "train", SourceFolder(str(corpus)))
    assert long.problem
    assert long.problem[0] == "bad_metadata"
    assert long.problem[1].endswith("characters, over 100")
    assert (short.text, short.problem) == ("B", None)


def test_a_compressed_line_without_end_is_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "cuts_train.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(17):
            file.write(b" " * 2**20)
    with pytest.raises(UserError, match=r"cuts_train\.jsonl\.gz:1: begins a line of over 16,777,216 bytes"):
        list(read_lhotse(str(tmp_path / "cuts_train.jsonl.gz"), "train", SourceFolder(str(tmp_path))))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_long_header_of_a_tar_is_not_read(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.wav")
    info.size = 4
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.addfile(info, io.BytesIO(b"RIFF"))
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = kind, 2**33
    data = (tmp_path / "train.tar").read_bytes()[:1024]
    with (tmp_path / "train.tar").open("wb") as file:
        file.write(data + long.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33 + 4096)
    audio, damaged = read_webdataset(str(tmp_path / "train.tar"), "train", SourceFolder(str(tmp_path)))
    assert (audio.id, audio.bytes) == ("a", 4)
    problem = "a damaged tar: a member header of 8,589,934,592 bytes, over 1,048,576"
    assert damaged.problem == ("unreadable", problem)


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (LAUGHS, r"it repeats a part with an alias"),
        ("a: &a {b: *a}", r"it repeats a part with an alias"),
        ("[" * 20_000, r"it is nested too deeply"),
        ("a: " + "x" * 2**21, r"it has over 1,048,576 characters"),
        ("a: 2020-99-99", r"month must be in 1\.\.12"),
        ("a: " + "1" * 5000, r"Exceeds the limit"),
        ("!!python/object/apply:os.mkdir [/tmp/x]", r"could not determine a constructor"),
    ],
)
def test_yaml_that_is_more_than_values_is_refused(content: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"recipe\.yaml: not readable as YAML or JSON \(.*{problem}"):
        read_spec_file(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("value", ["[" * 20_000, "[&a [x], *a]", "2020-99-99"])
def test_an_override_is_a_plain_value(value: str) -> None:
    with pytest.raises(UserError, match=r"optim\.lr: .+ is not a YAML value; quote it"):
        apply_overrides({}, [f"optim.lr={value}"])
