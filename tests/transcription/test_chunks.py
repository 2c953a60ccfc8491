"""Chunks: every sample is in exactly one, cuts are in pauses, and a resampled stream has no seams."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from foldray.data.audio import decode
from foldray.data.recording import Samples, decode_recording, read_recording
from foldray.data.samples import BadAudioError
from foldray.errors import UserError
from foldray.transcription.chunks import cut_chunks


def bursts(seconds: int, seed: int = 0) -> Samples:
    """Noise of 0.7 s and near silence of 0.3 s in turn."""
    rng = np.random.default_rng(seed)
    samples = 0.2 * rng.standard_normal(16_000 * seconds).astype(np.float32)
    samples[np.arange(len(samples)) % 16_000 > 11_200] *= 1e-3
    return samples


def in_pieces(samples: Samples, sizes: list[int]) -> Iterator[Samples]:
    for size in sizes:
        yield samples[:size]
        samples = samples[size:]
    yield samples


@pytest.mark.parametrize(("sizes", "step"), [([5, 70_000, 1], 320), ([480_000], 640), ([], 1280)])
def test_chunks_own_every_sample_once(sizes: list[int], step: int) -> None:
    samples = bursts(61)[:-77]
    chunks = list(cut_chunks(in_pieces(samples, sizes), 20, 1.6, step))
    assert len(chunks) > 3
    own = [chunk.samples[chunk.begin - chunk.start :][: chunk.end - chunk.begin] for chunk in chunks]
    assert np.array_equal(np.concatenate(own), samples)
    assert [chunk.begin for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]]
    for chunk in chunks:
        assert np.array_equal(chunk.samples, samples[chunk.start :][: len(chunk.samples)])
        assert len(chunk.samples) <= 20 * 16_000
        assert chunk.start % step == 0
        assert chunk.begin % step == 0
    assert not any(any(chunk.overlaps) for chunk in chunks)


def test_cuts_are_in_pauses_and_the_same_however_the_stream_is_read() -> None:
    samples = bursts(61)
    chunks = list(cut_chunks([samples], 20, 3))
    again = list(cut_chunks(in_pieces(samples, [160] * 500), 20, 3))
    assert [(chunk.begin, chunk.end) for chunk in chunks] == [(chunk.begin, chunk.end) for chunk in again]
    assert all((chunk.end - 1) % 16_000 > 11_200 for chunk in chunks[:-1])


def test_speech_without_a_pause_is_cut_with_overlap() -> None:
    noise = 0.2 * np.random.default_rng(0).standard_normal(16_000 * 45).astype(np.float32)
    chunks = list(cut_chunks([noise], 20, 3))
    assert [chunk.overlaps for chunk in chunks] == [(False, True), *[(True, True)] * (len(chunks) - 2), (True, False)]
    assert all(chunk.begin - chunk.start == 3 * 16_000 for chunk in chunks[1:])


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 11_127])
def test_a_stream_is_resampled_as_the_whole_file(rate: int) -> None:
    seconds = 65.3
    samples = bursts(66)[: (66 * 16_000)]
    resized = np.interp(np.arange(int(seconds * rate)) / rate, np.arange(len(samples)) / 16_000, samples)
    file = io.BytesIO()
    soundfile.write(file, np.stack([resized, 0.5 * resized], axis=1), rate, format="FLAC")
    pieces = list(decode_recording(file.getvalue()))
    whole = decode(file.getvalue())
    assert len(pieces) >= 2
    assert sum(map(len, pieces)) == len(whole)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=2e-6)


def test_damage_behind_the_first_pieces_is_an_error_at_the_end() -> None:
    file = io.BytesIO()
    soundfile.write(file, bursts(70), 16_000, format="FLAC")
    with pytest.raises(BadAudioError):
        list(decode_recording(file.getvalue()[:-5_000]))


def test_silence_and_film_have_a_line_that_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    with pytest.raises(UserError, match=r"silent.wav: can't be used \(silent: peak below"):
        list(read_recording(str(tmp_path / "silent.wav")))
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 64)
    monkeypatch.setattr("foldray.data.recording.is_installed", lambda module: False)
    with pytest.raises(UserError, match=r"MP4.*; write it as FLAC with ffmpeg, or install PyAV: pip install"):
        list(read_recording(str(tmp_path / "film.mp4")))
