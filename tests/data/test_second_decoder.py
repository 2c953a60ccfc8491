"""A second decoder agrees: as many samples as ffmpeg finds, in files by six encoders, whole and cut off.

The rule: a whole file has exactly the samples that ffmpeg decodes. Only where an MP3 states no gapless lengths, ffmpeg
keeps the 529 samples of the decoder's delay (mpg123 drops them), and Opus is compared at the rate it was made from.
A file that is cut off is refused with a reason. Where its format can't tell, the samples that are there are kept: as
many as ffmpeg finds, in MP3 at most one frame (1,152) more or fewer.
"""

from pathlib import Path

import pytest

from foldray.data.samples import BadAudioError, read_samples
from tests.support.encoders import ENCODERS, MISSING, decode_by_ffmpeg, encode

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

UNTAGGED = ("ffmpeg-piped.mp3", "ffmpeg-without-xing.mp3", "lame-untagged.mp3")
LENGTH_UNKNOWN = (*UNTAGGED, "ffmpeg-piped.wav", "ffmpeg-piped.au", "sox-piped.aiff")
QUICK = {("ffmpeg-rf64.wav", 8_000, 1), ("lame-untagged.mp3", 16_000, 1), ("opusenc.opus", 16_000, 1)}
ALL = [
    (encoder, 24_000 if "opus" in encoder and rate == 22_050 else rate, channels)
    for encoder in ENCODERS
    for rate, channels in ((8_000, 1), (16_000, 1), (22_050, 2), (48_000, 1))
]


def expected(encoder: str, data: bytes, rate: int, channels: int, folder: Path) -> int:
    """Samples of a file by ffmpeg, as our decoder counts them."""
    found = decode_by_ffmpeg(data, channels, folder)
    return found * rate // 48_000 if "opus" in encoder else found


@pytest.mark.parametrize(
    ("encoder", "rate", "channels"),
    [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.soak]) for case in ALL],
)
def test_a_second_decoder_agrees(encoder: str, rate: int, channels: int, tmp_path: Path) -> None:
    data = encode(encoder, tmp_path, rate, channels)
    samples_TC, found_rate, promised = read_samples(data)
    delay = 529 if encoder in UNTAGGED else 0
    assert (found_rate, samples_TC.shape[1]) == (rate, channels)
    assert len(samples_TC) == promised == expected(encoder, data, rate, channels, tmp_path) - delay
    for tenth in range(1, 11):
        cut = data[: len(data) * tenth // 11]
        kept, reason = samples_or_reason(cut)
        assert reason in (["", "truncated"] if encoder in LENGTH_UNKNOWN else ["truncated", "unreadable"]), tenth
        if not reason:
            there = expected(encoder, cut, rate, channels, tmp_path)
            assert abs(kept - there) <= (1_152 if delay else 0), tenth


def samples_or_reason(data: bytes) -> tuple[int, str]:
    try:
        return len(read_samples(data)[0]), ""
    except BadAudioError as bad:
        return 0, bad.reason


JOINED = ("flac-piped.flac", "oggenc.ogg", "opusenc.opus", "lame-untagged.mp3")


@pytest.mark.parametrize("encoder", ["lame-vbr.mp3", *(pytest.param(each, marks=pytest.mark.soak) for each in JOINED)])
def test_joined_files_have_the_samples_of_all(encoder: str, tmp_path: Path) -> None:
    parts = [encode(encoder, tmp_path, 48_000, 1, seconds) for seconds in (1.5, 0.7)]
    delay = 529 if encoder in UNTAGGED else 0  # of one stream
    alone = [len(read_samples(part)[0]) for part in parts]
    assert len(read_samples(b"".join(parts))[0]) == sum(alone) + delay
