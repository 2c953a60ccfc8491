"""What containers promise is compared with what is there: nothing is lost without a reason."""

import io
import struct
import time

import numpy as np
import pytest
import soundfile

from foldray.data.audio import decode
from foldray.data.containers import Contents, read_contents
from foldray.data.containers.contents import MOST_PARTS, TOO_MANY_PARTS
from foldray.data.containers.formats import FIX
from foldray.data.samples import BadAudioError, read_samples
from tests.support.encoders import voice_like

VOICE = voice_like(1.5, 16_000, 1)
KINDS = {
    "WAV": "PCM_16", "RF64": "PCM_16", "W64": "PCM_16", "AIFF": "PCM_16", "AU": "PCM_16", "CAF": "PCM_16",
    "NIST": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "OPUS": "OPUS", "MP3": "MPEG_LAYER_III",
}  # fmt: skip
FRAME = b"\xff\xfb\x10\x00".ljust(104, b"\x55")  # of MPEG-1 layer III, 32 kbit/s at 44.1 kHz
JOINABLE = ("WAV", "AIFF", "AU", "FLAC", "OGG", "OPUS", "MP3")


def audio(kind: str, samples: np.ndarray = VOICE, rate: int = 16_000) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format="OGG" if kind == "OPUS" else kind, subtype=KINDS[kind])
    return target.getvalue()


def patched(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    changed = bytearray(data)
    for position, value in changes:
        changed[position : position + len(value)] = value
    return bytes(changed)


def reason(data: bytes) -> str:
    with pytest.raises(BadAudioError) as caught:
        decode(data)
    return caught.value.reason


def unchanged(data: bytes, kind: str) -> bool:
    return np.array_equal(read_samples(data)[0], read_samples(audio(kind))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_read_and_a_cut_one_is_truncated(kind: str) -> None:
    data = audio(kind)
    assert len(decode(data)) == len(VOICE)
    assert {reason(data[: len(data) * tenth // 10]) for tenth in range(4, 10)} == {"truncated"}


@pytest.mark.parametrize("size", [0, 1, 8, 2**31, 2**32 - 1])
def test_the_size_of_the_whole_file_does_not_matter(size: int) -> None:
    stated = struct.pack("<I", size)
    assert unchanged(patched(audio("WAV"), (4, stated)), "WAV")
    assert unchanged(patched(audio("AIFF"), (4, stated[::-1])), "AIFF")


@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_a_chunk_may_follow_an_odd_number_of_bytes_with_or_without_a_pad_byte(pad: bytes) -> None:
    target = io.BytesIO()
    soundfile.write(target, VOICE[:24_001], 16_000, format="WAV", subtype="PCM_U8")
    data = target.getvalue()
    data = data[: 44 + 24_000 - 1]
    data = patched(data, (40, struct.pack("<I", len(data) - 44)))
    listed = data + pad + b"LIST" + struct.pack("<I", 2000) + b"INFO" + bytes(1996)
    assert len(read_samples(listed)[0]) == len(data) - 44


def sizes(kind: str, data: bytes) -> list[tuple[int, str]]:
    """Position and format of the sizes that a header states."""
    return {
        "WAV": [(4, "<I"), (40, "<I")],
        "AU": [(8, ">I")],
        "AIFF": [(4, ">I"), (data.find(b"SSND") + 4, ">I")],
        "CAF": [(data.find(b"data") + 4, ">Q")],
        "W64": [(16, "<Q"), (data.find(b"data\xf3") + 16, "<Q")],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("WAV", 0), ("WAV", 2**32 - 1), ("WAV", 2**31 - 1), ("WAV", 2**31), ("WAV", 2**31 - 2**13),
        ("AU", 2**32 - 1), ("AU", 0), ("AIFF", 0x7F000008), ("AIFF", 0), ("CAF", 2**64 - 1), ("W64", 2**63 - 1),
        ("W64", 0),
    ],
)  # fmt: skip
def test_an_unknown_size_is_read_to_the_end(kind: str, size: int) -> None:
    data = audio(kind)
    changes = [(at, struct.pack(code, size)) for at, code in sizes(kind, data)]
    assert unchanged(patched(data, *changes), kind)


@pytest.mark.parametrize("kind", JOINABLE)
def test_files_that_were_joined_are_read_one_after_the_other(kind: str) -> None:
    parts = [audio(kind), audio(kind, 0.5 * VOICE[:20_000]), audio(kind)]
    alone = [read_samples(part)[0] for part in parts]
    assert np.array_equal(read_samples(b"".join(parts))[0], np.concatenate(alone))
    assert reason(b"".join(parts)[:-2000]) == "truncated"
    assert len(decode(b"".join(parts))) == 2 * len(VOICE) + 20_000


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_parts_of_different_rates_are_not_joined(kind: str) -> None:
    with pytest.raises(BadAudioError, match="1 channels at 16000 Hz and 1 channels at 8000 Hz"):
        decode(audio(kind) + audio(kind, VOICE, 8_000))


def frame_length(data: bytes) -> int:
    """Bytes of the first frame of an MP3 at 16 kHz without tags before it."""
    bitrates = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    return 72 * bitrates[data[2] >> 4] // 16 + (data[2] >> 1 & 1)


def test_the_frames_of_an_mp3_are_counted_where_xing_does_not() -> None:
    """Without it, the decoder also drops the 529 samples of its own delay, and the encoder's padding stays."""
    data = audio("MP3")
    frames = int.from_bytes(data[data.find(b"Info" if b"Info" in data[:64] else b"Xing") + 8 :][:4], "big")
    bare = data[frame_length(data) :]
    assert len(read_samples(bare)[0]) == 576 * frames - 529
    assert len(read_samples(bare + bare)[0]) == 2 * 576 * frames - 529
    assert len(read_samples(data + bare)[0]) == len(VOICE) + 576 * frames - 529
    assert len(read_samples(bare[300:])[0]) > 576 * (frames - 3), "the rest of a frame comes first"
    assert reason(bare[:-50]) == "truncated"


def test_tags_around_frames_are_no_damage() -> None:
    tag, mp3, wav, flac = b"TAG" + bytes([65] * 125), audio("MP3"), audio("WAV"), audio("FLAC")
    id3 = b"ID3\x03\0\0\0\0\x02\0" + bytes([70] * 256)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 64, 0, 1 << 29) + bytes(8) + bytes([66] * 64)
    assert len(decode(id3 + mp3 + ape + tag + id3 + mp3 + tag)) == 2 * len(VOICE)
    assert len(decode(wav + tag)) == len(decode(id3 + flac + tag)) == len(VOICE)


def test_what_lies_between_frames_or_behind_the_samples_is_damage() -> None:
    mp3, wav = audio("MP3"), audio("WAV")
    assert reason(mp3[:1000] + bytes([3] * 4000) + mp3[1000:]) in ("damaged", "truncated")
    assert reason(wav + wav[44:]) == "damaged", "half the samples are behind the end that the header states"
    assert len(decode(wav + bytes(5000))) == len(VOICE)


def ogg_pages(data: bytes) -> list[bytes]:
    starts = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


@pytest.mark.parametrize("kind", ["OGG", "OPUS"])
def test_a_page_that_is_missing_or_damaged_is_found(kind: str) -> None:
    pages = ogg_pages(audio(kind, np.tile(VOICE, (8, 1))))
    assert len(pages) > 5
    assert reason(b"".join(pages[:-1])) == "truncated", "the page that ends the stream"
    assert reason(b"".join(pages[:4] + pages[5:])) == "damaged"
    assert reason(b"".join([*pages[:4], pages[4][:-9] + b"x" + pages[4][-8:], *pages[5:]])) == "damaged"
    assert decode(b"".join(pages) + b"TAG" + bytes(125)).any()


@pytest.mark.parametrize("kind", [*KINDS, "joined MP3", "joined OPUS", "piped FLAC", "MP3 without Xing"])
def test_segments_are_parts_of_the_whole(kind: str) -> None:
    data = audio(kind.split()[-1] if "Xing" not in kind else "MP3")
    if kind.startswith("joined"):
        data += data
    if kind == "piped FLAC":
        data = patched(data, (21, (data[21] >> 4 << 4 << 32).to_bytes(5, "big")))
    if "Xing" in kind:
        data = data[frame_length(data) :]
    whole = read_samples(data)[0]
    for start in (0.0, 0.7, 1.0, len(whole) / 16_000 - 0.5):
        segment = read_samples(io.BytesIO(data), start, 0.5)[0]
        first = round(start * 16_000)
        assert segment.shape == (8_000, 1)
        assert np.abs(segment - whole[first : first + 8_000]).max() < (1e-3 if "OPUS" in kind else 1e-5), start
    assert len(read_samples(io.BytesIO(data), 0.7)[0]) == len(whole) - 11_200
    with pytest.raises(BadAudioError, match="truncated"):
        read_samples(io.BytesIO(data[:-3000]), 0.1)
    with pytest.raises(BadAudioError, match="begins at"):
        read_samples(io.BytesIO(data), len(whole) / 16_000, 0.5)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x1cftypM4A ", "M4A"), (b"\0\0\0\x18ftyp3gp4", "3GP"), (b"\xff\xf1\x50\x80", "AAC"),
        (b"\x1aE\xdf\xa3\x9fB\x86", "WebM"), (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"), (b"#!AMR\n", "AMR"),
        (b"#!AMR-WB\n", "AMR"), (b"wvpk", "WavPack"), (b"MAC \x96\x0f", "Monkey"), (b"RIFF\0\0\0\0AVI LIST", "AVI"),
    ],
)  # fmt: skip
def test_formats_that_are_not_decoded_are_named_with_a_fix(head: bytes, name: str) -> None:
    with pytest.raises(BadAudioError, match=f"{name}.*; write it as FLAC or OGG, for example with ffmpeg") as caught:
        decode(head + bytes(2000))
    assert caught.value.reason == "unsupported_format"


def test_formats_whose_length_is_not_checked_are_refused() -> None:
    target = io.BytesIO()
    soundfile.write(target, VOICE, 16_000, format="VOC", subtype="PCM_16")
    assert reason(target.getvalue()) == "unsupported_format"


@pytest.mark.parametrize("gain", [-1.0, -0.9])
def test_channels_that_cancel_each_other_are_not_taken_for_quiet_speech(gain: float) -> None:
    stereo = np.concatenate([VOICE, gain * VOICE], axis=1)
    with pytest.raises(
        BadAudioError, match="the mean of the 2 channels cancels them; give the row a `channel`"
    ) as caught:
        decode(audio("WAV", 0.1 + stereo))
    assert caught.value.reason == "antiphase"
    assert np.array_equal(decode(audio("WAV", stereo), channel=1), read_samples(audio("WAV", stereo))[0][:, 1])


def test_independent_channels_and_one_among_silent_ones_are_averaged() -> None:
    lone = np.concatenate([VOICE, np.zeros((len(VOICE), 31), dtype=np.float32)], axis=1)
    crowd = voice_like(1.5, 16_000, 32)
    for samples in (lone, crowd):
        found = decode(audio("WAV", samples))
        assert np.abs(found - samples.mean(axis=1)).max() < 1e-4


def test_a_file_far_longer_than_declared_is_set_aside() -> None:
    data = audio("FLAC")
    assert len(decode(data, declared_seconds=1.3)) == len(VOICE)
    with pytest.raises(BadAudioError, match=r"1\.50 s, 1\.00 s declared; correct the duration, or .* the offset 0"):
        decode(data, declared_seconds=1.0)
    assert len(decode(data, declared_seconds=1.0, start=0.0)) == 16_000


@pytest.mark.parametrize("field", ["sample_count", "channel_count", "sample_n_bytes"])
def test_a_negative_number_in_a_sphere_header_ends(field: str) -> None:
    """A negative size put the end of the file at its start: splitting it never ended."""
    fields = {"sample_count": 512, "channel_count": 1, "sample_n_bytes": 2, "sample_rate": 16_000, field: -512}
    lines = "".join(f"{name} -i {value}\n" for name, value in fields.items())
    data = f"NIST_1A\n   1024\n{lines}end_head\n".encode().ljust(1024) + bytes(1024)
    assert read_contents(data) == Contents([data])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_thousand_joined_files_are_split_and_more_are_refused(kind: str) -> None:
    part = audio(kind, VOICE[:600])
    assert len(read_contents(MOST_PARTS * part).parts) == MOST_PARTS
    assert read_contents((MOST_PARTS + 1) * part).problem == TOO_MANY_PARTS


@pytest.mark.parametrize("between", [None, bytes(8), b"LYRICSBE"])
def test_no_part_and_no_tag_costs_a_look_at_all_that_follows(between: bytes | None) -> None:
    part = audio("WAV", VOICE[:1]) if between is None else FRAME + between
    data = FRAME * 3 * (between is not None) + 900 * part + bytes([1]) * 2**25
    started = time.process_time()
    read_contents(data)
    assert time.process_time() - started < 2, "seconds; each of 900 parts copied 32 MB before"


def test_a_joined_mp3_that_ends_in_a_tag_before_frames_is_cut() -> None:
    mp3, id3 = audio("MP3"), b"ID3\x03\0\0\0\0\x02\0" + bytes([70] * 256)
    assert {reason(mp3 + id3[:end]) for end in (3, 9, 10, 265)} == {"truncated"}
    assert len(decode(mp3 + id3 + mp3)) == 2 * len(VOICE)


def test_pages_that_are_out_of_order_are_not_called_missing() -> None:
    pages = ogg_pages(audio("OGG", voice_like(9, 16_000, 1)))
    swapped = [*pages[:3], pages[4], pages[3], *pages[5:]]
    problem = read_contents(b"".join(swapped)).problem
    assert problem == ("damaged", f"pages are missing, 1 in one place; {FIX}")
    problem = read_contents(b"".join([*pages[:4], pages[3], *pages[4:]])).problem
    assert problem == ("damaged", f"pages are out of order; {FIX}")
