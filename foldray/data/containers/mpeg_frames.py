"""Frames and tags of MPEG audio (ISO 11172-3, 2.4.1.3; id3.org)."""

import functools
import re
from dataclasses import dataclass

_BITRATES = {  # kbit/s by (is MPEG-1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_BITRATES[(False, 3)] = _BITRATES[(False, 2)]
_RATES = (44_100, 48_000, 32_000)
_SEARCHED = 2**16  # bytes in which the first frame is searched for
_MOST_LYRICS = 2**17  # bytes of a Lyrics3 tag; version 1 has at most 5,100
_LYRICS_END = re.compile(rb"LYRICS(END|200)")
_ZEROS = re.compile(rb"\0{8,}")
_NEAR = 2**13  # bytes of a tag that are looked at while frames are searched for: many places may lead to one tag


@dataclass(frozen=True)
class Header:
    """What a frame's header says."""

    size: int  # bytes of the frame
    samples: int
    kind: tuple[int, int, int]  # version, layer, rate: equal in all frames of a track


@functools.lru_cache(maxsize=4096)
def header_of(second: int, third: int) -> Header | None:
    """The meaning of a frame's second and third byte; None if they are not of a frame (or of one of 'free' size)."""
    version, layer, bitrate, rate = second >> 3 & 3, 4 - (second >> 1 & 3), third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] >> (0 if version == 3 else 1 if version == 2 else 2)
    bits = 1000 * _BITRATES[(version == 3, layer)][bitrate - 1]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    padding = third >> 1 & 1
    size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    return Header(size, samples, (version, layer, hertz))


@dataclass(slots=True)
class Frame:
    """A frame, and where it begins."""

    start: int
    header: Header
    channels: int


def frame_at(data: bytes, start: int) -> Frame | None:
    """The frame at a position, None if none begins there."""
    if start + 4 > len(data) or data[start] != 0xFF:
        return None
    header = header_of(data[start + 1], data[start + 2])
    return Frame(start, header, 1 if data[start + 3] >> 6 == 3 else 2) if header else None


def find_frames(data: bytes, start: int = 0, end: int | None = None) -> int | None:
    """Position of the first of three frames in a row (or of one or two, up to the end of the data), or None."""
    limit = start + _SEARCHED if end is None else end
    while (start := data.find(b"\xff", start, limit)) >= 0:
        position = start
        first = frame = frame_at(data, start)
        for count in range(3):
            if frame is None or first is None or frame.header.kind != first.header.kind:
                break
            position += frame.header.size
            if count == 2 or position == len(data) or tag_bytes(data[position : position + _NEAR], 0):
                return start
            frame = frame_at(data, position)
        start += 1
    return None


# --- Tags ------------------------------------------------------------------------------------------


def id3_bytes(data: bytes, start: int) -> int:
    """Bytes of the ID3v2 tag at a position, 0 if there is none."""
    if data[start : start + 3] != b"ID3" or start + 10 > len(data):
        return 0
    a, b, c, d = (byte & 0x7F for byte in data[start + 6 : start + 10])
    return 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if data[start + 5] & 0x10 else 0)


def tag_bytes(data: bytes, start: int) -> int:
    """Bytes of the tag at a position between frames, 0 if there is none."""
    magic = data[start : start + 8]
    if magic.startswith(b"ID3"):
        return id3_bytes(data, start)
    if magic.startswith(b"TAG"):
        return 227 if magic.startswith(b"TAG+") else 128
    if magic == b"APETAGEX" and start + 32 <= len(data):
        return 32 + int.from_bytes(data[start + 12 : start + 16], "little")
    if magic == b"LYRICSBE":
        found = _LYRICS_END.search(data, start, start + _MOST_LYRICS)
        return found.end() - start if found else 0
    if not any(magic):
        zeros = _ZEROS.match(data, start)
        return zeros.end() - start if zeros else len(magic)
    return 0
