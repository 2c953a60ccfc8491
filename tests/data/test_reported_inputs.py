"""Inputs from the public bug reports of other speech and data tools, each with its address."""

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from foldray.config.corpus import CorpusSpec
from foldray.data.audio import decode
from foldray.data.containers.mpeg_frames import frame_at
from foldray.data.corpora import find_corpus
from foldray.data.samples import BadAudioError
from foldray.data.utterance import Utterance
from tests.support.corpora import encode_wav
from tests.support.corpus_writers import add_member
from tests.support.encoders import voice_like


def in_tar(folder: Path, *members: tuple[str, bytes]) -> list[Utterance]:
    """The utterances of a tar."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data in members:
            add_member(tar, name, data)
    folder.mkdir()
    (folder / "test-0.tar").write_bytes(target.getvalue())
    return find_corpus(CorpusSpec(path=str(folder), splits=("test",)), str(folder.parent)).utterances


def said(utterances: list[Utterance]) -> list[tuple[str, str | None]]:
    """Ids, and the text or the reason against it."""
    return [(u.id, u.problem[0] if u.problem else u.text) for u in utterances]


def test_names_with_dots_keep_their_own_texts(tmp_path: Path) -> None:
    """https://github.com/webdataset/webdataset/issues/237: the key of a sample ends at the first dot."""
    tracks = [("Track 2.0.mp3", b"x"), ("Track 2.1.mp3", b"y"), ("Track 2.1.txt", b"ONE"), ("Track 2.2.mp3", b"z")]
    found = in_tar(tmp_path / "c", *tracks, ("Track 2.2.json", b'{"text": "TWO"}'), ("a.b/1.x.wav", b"w"))
    assert said(found) == [("Track 2.0", None), ("Track 2.1", "ONE"), ("Track 2.2", "TWO"), ("a.b/1", None)]
    channels = in_tar(tmp_path / "d", ("a.left.wav", b"x"), ("a.right.wav", b"y"), ("a.txt", b"BOTH"))
    assert said(channels) == [("a", "BOTH"), ("a", "duplicate_id")], "one text of one sample"
    assert said(in_tar(tmp_path / "e", ("a.1.wav", b"x"), ("a.2.txt", b"TWO"), ("a.1.txt", b"ONE"))) == [("a", "ONE")]


def test_a_text_that_is_in_a_tar_twice_is_not_chosen_from(tmp_path: Path) -> None:
    """https://github.com/webdataset/webdataset/issues/157: `tar -r` appends what it would replace."""
    twice = in_tar(tmp_path / "c", ("a.wav", b"x"), ("a.txt", b"OLD"), ("a.txt", b"NEW"), ("b.wav", b"y"))
    assert said(twice) == [("a", "bad_metadata"), ("b", None)]
    assert twice[0].problem
    assert twice[0].problem[1] == "'a.txt' is in the tar twice, with different texts; keep one of them"
    assert said(in_tar(tmp_path / "d", ("a.wav", b"x"), ("a.txt", b"A"), ("a.txt", b"A"))) == [("a", "A")]


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "GSM610"), ("AIFF", "GSM610"), ("AU", "G721_32")])
def test_a_segment_of_a_codec_without_seeking(kind: str, subtype: str) -> None:
    """https://github.com/libsndfile/libsndfile/issues/753: recordings of telephone systems."""
    target = io.BytesIO()
    soundfile.write(target, voice_like(6.0, 8_000, 1), 8_000, format=kind, subtype=subtype)
    whole = decode(target.getvalue())
    for start in (0.0, 2.0, 3.5):
        part = decode(io.BytesIO(target.getvalue()), 2.0, start)
        first = round(start * 16_000)
        assert np.abs(part[200:-200] - whole[first + 200 : first + 31_800]).max() < 1e-4


@pytest.mark.parametrize("name", ["duration", "offset"])
def test_a_number_beyond_all_floats_is_one_bad_row(name: str, tmp_path: Path) -> None:
    row: dict[str, Any] = {"audio": "a.wav", "text": "X", "duration": 1, name: 10**400}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + '\n{"audio": "b.wav", "text": "Y"}\n')
    found = find_corpus(CorpusSpec(path=str(tmp_path), splits=("test",)), str(tmp_path)).utterances
    assert said(found) == [("test.jsonl:1", "bad_metadata"), ("b", "Y")]
    big = json.dumps({"text": "A", "duration": 10**400}).encode()
    assert said(in_tar(tmp_path / "c", ("a.wav", b"x"), ("a.json", big))) == [("a", "bad_metadata")]


def test_a_rate_that_holds_no_speech_is_a_mistake_of_the_header() -> None:
    """https://github.com/XinhaoMei/WavCaps/issues/23: 1 Hz made eight minutes of samples 200 hours."""
    for seconds in (10, 200 * 3600):
        with pytest.raises(BadAudioError, match="1 channels at 1 Hz; correct its header") as caught:
            decode(encode_wav(np.random.default_rng(0).normal(0, 0.1, seconds), 1))
        assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("size", [None, 0, 2**32 - 1])
def test_mp3_in_a_wav_is_read_to_its_end(size: int | None) -> None:
    """https://github.com/Vanilagy/mediabunny/issues/440: libsndfile found two of seven seconds."""
    voice = voice_like(4.0, 44_100, 1)
    target = io.BytesIO()
    samples = np.concatenate([0.01 * voice[: 3 * 44_100], voice])
    options: dict[str, Any] = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
    soundfile.write(target, samples, 44_100, format="MP3", subtype="MPEG_LAYER_III", **options)
    tagged = frame_at(target.getvalue(), 0)
    assert tagged
    mp3 = target.getvalue()[tagged.header.size :]  # without its Xing frame, as ffmpeg copies it into a WAV
    codec = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 44_100, 16_000, 1, 0, 12, 1, 2, 1152, 1, 1393)
    head = b"WAVEfmt " + struct.pack("<I", len(codec)) + codec + b"data"
    stated = struct.pack("<I", len(mp3) if size is None else size)
    wav = b"RIFF" + struct.pack("<I", len(head) + 4 + len(mp3)) + head + stated + mp3
    assert np.array_equal(decode(wav), decode(mp3))
    assert np.array_equal(decode(io.BytesIO(wav), 1.5, 5.0), decode(io.BytesIO(mp3), 1.5, 5.0))
    if size is None:
        with pytest.raises(BadAudioError, match="of samples") as caught:
            decode(wav[: len(wav) // 2])
        assert caught.value.reason == "truncated"
