"""Rows choose files, never a server, another bucket or this machine's files; and nothing shows a secret."""

import json
from pathlib import Path

import pytest

from foldray.config.corpus import CorpusSpec
from foldray.config.section import without_secret
from foldray.data.audio_places import AudioPlaces
from foldray.data.corpora import find_corpus
from foldray.data.manifest import quarantine_entry
from foldray.data.utterance import Utterance
from foldray.errors import UserError, scrubbed

HERE = "s3://bucket/corpus?endpoint_override=store:9000&scheme=http"
OPTIONS = "?endpoint_override=store:9000&scheme=http"


def _checked(audio: str, root: str, *others: str) -> Utterance:
    return AudioPlaces([root], others).checked(Utterance("a", "train", audio, "A", "row"))


@pytest.mark.parametrize(
    ("audio", "root", "others"),
    [
        ("s3://bucket/key.wav?endpoint_override=evil:80&scheme=http", "s3://bucket/corpus", ()),
        ("s3://bucket/key.wav?anonymous=true", "s3://bucket/corpus", ()),
        ("s3://bucket/key.wav?endpoint_override=evil", HERE, ()),
        ("s3://other/key.wav", "s3://bucket/corpus", ()),
        ("s3://other/private/key.wav", "s3://bucket/corpus", ("s3://other/clips",)),
        ("s3://other/clips/../private/key.wav", "s3://bucket/corpus", ("s3://other/clips",)),
        ("s3://other/clipsandmore/key.wav", "s3://bucket/corpus", ("s3://other/clips",)),
        ("s3://bucket/key.wav", "/corpus", ()),
        ("s3://", "/corpus", ()),
        ("/etc/passwd", "s3://bucket/corpus", ()),
        ("file:///etc/passwd", "s3://bucket/corpus", ()),
        ("/clips/../etc/passwd", "s3://bucket/corpus", ("/clips",)),
    ],
)
def test_a_row_cannot_choose_another_place(audio: str, root: str, others: tuple[str, ...]) -> None:
    problem = _checked(audio, root, *others).problem
    assert problem is not None
    assert problem[0] == "unsafe_path"
    assert "corpus.audio_places" in problem[1]
    assert "evil" not in problem[1]


@pytest.mark.parametrize(
    ("audio", "root", "others", "read"),
    [
        ("s3://bucket/elsewhere/a.wav", "s3://bucket/corpus", (), "s3://bucket/elsewhere/a.wav"),
        ("s3://bucket/a.wav", HERE, (), f"s3://bucket/a.wav{OPTIONS}"),
        (f"s3://bucket/corpus/a.wav{OPTIONS}", HERE, (), f"s3://bucket/corpus/a.wav{OPTIONS}"),
        ("s3://other/clips/a.wav", HERE, ("s3://other/clips",), "s3://other/clips/a.wav"),
        ("s3://other/a.wav", "/corpus", ("s3://other?region=eu-west-1",), "s3://other/a.wav?region=eu-west-1"),
        ("/elsewhere/a.wav", "/corpus", (), "/elsewhere/a.wav"),
        ("/clips/a.wav", HERE, ("/clips/",), "/clips/a.wav"),
        ("https://host/a.wav", "/corpus", (), "https://host/a.wav"),
    ],
)
def test_options_come_from_the_spec(audio: str, root: str, others: tuple[str, ...], read: str) -> None:
    found = _checked(audio, root, *others)
    assert (found.audio, found.problem) == (read, None)


def test_a_local_corpus_sends_no_request_for_its_rows(tmp_path: Path) -> None:
    row = {"audio": "s3://bucket/a.wav?endpoint_override=127.0.0.1:9&scheme=http", "text": "A"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    corpus = find_corpus(CorpusSpec(path=str(tmp_path), splits=("train",)), str(tmp_path / "store"))
    (utterance,) = corpus.utterances
    assert utterance.problem
    assert utterance.problem[0] == "unsafe_path"


SECRETS = {
    "s3://AKIAKEY:SECRET@bucket/x": "s3://bucket/x",
    "s3://AKIAKEY:SEC/RET@bucket/x": "s3://bucket/x",
    "https://user:pass%40host/x": "https://host/x",
    "https://SECRET@host/x": "https://host/x",
    "https://h/x?X-Amz-Signature=SECRET&a=1": "https://h/x?X-Amz-Signature=(hidden)&a=1",
    "https://h/x?a=1&AWSAccessKeyId=SECRET": "https://h/x?a=1&AWSAccessKeyId=(hidden)",
    "https://h/x?X-Amz-Security-Token=SECRET": "https://h/x?X-Amz-Security-Token=(hidden)",
    "s3://b/x?secret_key=SECRET": "s3://b/x?secret_key=(hidden)",
}


@pytest.mark.parametrize(("uri", "shown"), SECRETS.items())
def test_secrets_are_shown_nowhere(uri: str, shown: str) -> None:
    assert scrubbed(f"{uri} is away") == f"{shown} is away"
    assert str(UserError(uri, f"no file at {uri}")) == f"{shown}: no file at {shown}"
    entry = quarantine_entry(Utterance(uri, "train", uri, "A", uri), "missing_file", f"no file at {uri}", "/corpus")
    assert entry == {
        "id": shown, "split": "train", "source": shown, "reason": "missing_file", "detail": f"no file at {shown}",
    }  # fmt: skip


@pytest.mark.parametrize("field", ["path", "audio_root", "audio_places"])
@pytest.mark.parametrize("uri", [*SECRETS, "s3://user%3Apass%2540host/x", "https://h/x%3FX-Amz-Signature%3DSECRET"])
def test_a_spec_holds_no_secret(field: str, uri: str) -> None:
    value = (uri,) if field == "audio_places" else uri
    with pytest.raises(ValueError, match="contains credentials; set them in the AWS environment") as failed:
        CorpusSpec.model_validate({"path": "/corpus", field: value})
    assert "SECRET" not in str(failed.value).replace(repr(uri), "")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@b.wav", "/home/me@work/x", "s3://bucket/x?endpoint_override=host:9000&scheme=http",
        "http://host:9000/a@b", "s3://bucket/token=1/x", "s3://bucket/50%25/x", "an4?x=1",
    ],
)  # fmt: skip
def test_ordinary_uris_are_no_secrets(uri: str) -> None:
    assert without_secret(uri) == uri
    assert scrubbed(uri) == uri
