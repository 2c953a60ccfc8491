"""Audio files made by the programs that people make them with: ffmpeg, sox, lame, flac, opusenc and oggenc."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.support.corpora import encode_wav

PROGRAMS = ("ffmpeg", "sox", "lame", "flac", "opusenc", "oggenc")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]

_FFMPEG = ("ffmpeg", "-v", "error", "-y", "-i", "{in}")
_RECIPES: dict[str, tuple[str, ...]] = {
    "ffmpeg-u8.wav": (*_FFMPEG, "-c:a", "pcm_u8", "{out}"),
    "ffmpeg-s16.wav": (*_FFMPEG, "{out}"),
    "ffmpeg-s24.wav": (*_FFMPEG, "-c:a", "pcm_s24le", "{out}"),
    "ffmpeg-f32.wav": (*_FFMPEG, "-c:a", "pcm_f32le", "{out}"),
    "ffmpeg-mulaw.wav": (*_FFMPEG, "-c:a", "pcm_mulaw", "{out}"),
    "ffmpeg-piped.wav": (*_FFMPEG, "-f", "wav", "-"),
    "ffmpeg.w64": (*_FFMPEG, "{out}"),
    "ffmpeg-rf64.wav": (*_FFMPEG, "-rf64", "always", "{out}"),
    "ffmpeg.aiff": (*_FFMPEG, "{out}"),
    "ffmpeg.au": (*_FFMPEG, "{out}"),
    "ffmpeg-piped.au": (*_FFMPEG, "-f", "au", "-"),
    "ffmpeg.caf": (*_FFMPEG, "{out}"),
    "ffmpeg.flac": (*_FFMPEG, "{out}"),
    "ffmpeg-piped.flac": (*_FFMPEG, "-f", "flac", "-"),
    "ffmpeg-vorbis.ogg": (*_FFMPEG, "-c:a", "libvorbis", "{out}"),
    "ffmpeg-opus.ogg": (*_FFMPEG, "-c:a", "libopus", "{out}"),
    "ffmpeg-cbr.mp3": (*_FFMPEG, "-b:a", "64k", "{out}"),
    "ffmpeg-vbr.mp3": (*_FFMPEG, "-q:a", "4", "{out}"),
    "ffmpeg-piped.mp3": (*_FFMPEG, "-f", "mp3", "-"),
    "ffmpeg-without-xing.mp3": (*_FFMPEG, "-q:a", "4", "-write_xing", "0", "-id3v2_version", "0", "{out}"),
    "sox.wav": ("sox", "{in}", "{out}"),
    "sox-piped.wav": ("sox", "{in}", "-t", "wav", "-"),
    "sox.aiff": ("sox", "{in}", "{out}"),
    "sox-piped.aiff": ("sox", "{in}", "-t", "aiff", "-"),
    "sox-piped.au": ("sox", "{in}", "-t", "au", "-"),
    "sox.sph": ("sox", "{in}", "{out}"),
    "sox.w64": ("sox", "{in}", "{out}"),
    "sox.flac": ("sox", "{in}", "{out}"),
    "lame-cbr.mp3": ("lame", "--quiet", "-b", "64", "{in}", "{out}"),
    "lame-vbr.mp3": ("lame", "--quiet", "-V", "4", "{in}", "{out}"),
    "lame-untagged.mp3": ("lame", "--quiet", "-V", "4", "-t", "{in}", "{out}"),
    "flac.flac": ("flac", "--silent", "{in}", "-o", "{out}"),
    "flac-piped.flac": ("flac", "--silent", "--stdout", "{in}"),
    "opusenc.opus": ("opusenc", "--quiet", "{in}", "{out}"),
    "oggenc.ogg": ("oggenc", "--quiet", "{in}", "-o", "{out}"),
}
"""Commands by the names of what they write; those without `{out}` write to a pipe."""
ENCODERS = tuple(_RECIPES)


def voice_like(seconds: float, rate: int, channels: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Noise under a slow envelope (T, C), which no encoder takes for silence."""
    random = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    envelope = 0.05 * (1.2 + np.sin(2 * np.pi * 3 * times))
    return (random.normal(0, 1, (len(times), channels)) * envelope[:, None]).astype(np.float32)


def encode(encoder: str, folder: Path, rate: int, channels: int, seconds: float = 1.5) -> bytes:
    """A file by one of the encoders."""
    source, target = folder / "source.wav", folder / f"{rate}-{channels}-{encoder}"
    source.write_bytes(encode_wav(voice_like(seconds, rate, channels), rate))
    command = [{"{in}": str(source), "{out}": str(target)}.get(part, part) for part in _RECIPES[encoder]]
    if str(target) in command:
        subprocess.run(command, check=True, capture_output=True)
    else:
        target.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    return target.read_bytes()


def decode_by_ffmpeg(data: bytes, channels: int, folder: Path) -> int:
    """How many samples ffmpeg finds in a file, of Opus at 48 kHz."""
    file = folder / "decoded"
    file.write_bytes(data)
    command = ["ffmpeg", "-v", "error", "-i", str(file), "-f", "f32le", "-ac", str(channels), "-"]
    return len(subprocess.run(command, capture_output=True, check=False).stdout) // (4 * channels)
