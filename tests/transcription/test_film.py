"""The sound of films through PyAV: as long as what was encoded, and the same sound."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from foldray.data.recording import read_recording
from foldray.errors import UserError
from tests.support.encoders import MISSING

CODECS = {"mp4": ["-c:a", "aac"], "webm": ["-c:a", "libopus"], "mkv": ["-c:a", "pcm_s16le"], "m4a": ["-c:a", "aac"]}


@pytest.fixture(scope="module")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 s of a tone that rises, in stereo at 44.1 kHz."""
    file = tmp_path_factory.mktemp("film") / "tone.wav"
    time = np.arange(33 * 44_100) / 44_100
    soundfile.write(file, np.stack([0.4 * np.sin(2 * np.pi * (200 + 10 * time) * time)] * 2, axis=1), 44_100)
    return file


@pytest.mark.main
@pytest.mark.skipif("ffmpeg" in MISSING, reason="ffmpeg is not installed")
@pytest.mark.parametrize("ending", CODECS)
def test_the_sound_of_a_film_is_read_whole(ending: str, tone: Path, tmp_path: Path) -> None:
    film = tmp_path / f"film.{ending}"
    picture = [] if ending == "m4a" else ["-f", "lavfi", "-i", "color=black:s=64x64:r=5:d=33"]
    command = ["ffmpeg", "-loglevel", "error", "-i", str(tone), *picture, *CODECS[ending], "-shortest", str(film)]
    subprocess.run(command, check=True)
    pieces, whole = list(read_recording(str(film))), np.concatenate(list(read_recording(str(tone))))
    assert len(pieces) == 2
    found = np.concatenate(pieces)
    assert abs(len(found) - len(whole)) <= 0.1 * 16_000
    # Encoders delay by a few milliseconds: the best of some shifts counts.
    part = slice(16_000 * 20, 16_000 * 22)
    likeness = max(
        np.corrcoef(found[part], whole[part.start - shift : part.stop - shift])[0, 1] for shift in range(-1_600, 1_600)
    )
    assert likeness > 0.9


@pytest.mark.main
def test_a_damaged_film_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 5_000)
    with pytest.raises(UserError, match=r"film.mp4: can't be used \(unreadable: "):
        list(read_recording(str(tmp_path / "film.mp4")))


@pytest.mark.main
@pytest.mark.skipif("ffmpeg" in MISSING, reason="ffmpeg is not installed")
@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_half_a_film_is_not_taken_for_a_whole_one(ending: str, tone: Path, tmp_path: Path) -> None:
    film = tmp_path / f"film.{ending}"
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", str(tone), *CODECS[ending], str(film)], check=True)
    data = film.read_bytes()
    film.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"can't be used \(truncated: 1\d\.\d of 33\.\d s of sound; copy it again"):
        list(read_recording(str(film)))


@pytest.mark.main
@pytest.mark.skipif("ffmpeg" in MISSING, reason="ffmpeg is not installed")
def test_a_broadcast_may_change_its_channels(tone: Path, tmp_path: Path) -> None:
    for channels in ("2", "1"):
        part = str(tmp_path / f"{channels}.ts")
        subprocess.run(
            ["ffmpeg", "-loglevel", "error", "-i", str(tone), "-ac", channels, "-c:a", "aac", part], check=True
        )
    both = tmp_path / "both.aac"
    parts = "concat:" + "|".join(str(tmp_path / f"{channels}.ts") for channels in ("2", "1"))
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", parts, "-c:a", "copy", str(both)], check=True)
    assert abs(sum(map(len, read_recording(str(both)))) - 66 * 16_000) <= 0.2 * 16_000
