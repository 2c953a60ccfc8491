"""MPEG audio (MP3): a stream of frames, whose length no header needs to state.

Xing's frame may count the frames, but is missing in streams, and counts only the first of several joined files. So the
frames are counted, and every track gets a Xing frame with its own number (ISO 11172-3, 2.4.1.3; LAME's mp3 info tag).
"""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from foldray.data.containers.contents import Contents
from foldray.data.containers.formats import FIX

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
_INFO_MAGICS = (b"Xing", b"Info", b"VBRI")
_INFO_BYTES = 64  # a frame that holds a Xing tag with the number of frames


@dataclass(frozen=True)
class _Header:
    size: int  # bytes of the frame
    samples: int
    kind: tuple[int, int, int]  # version, layer, rate: equal in all frames of a track


@functools.lru_cache(maxsize=4096)
def _header(second: int, third: int) -> _Header | None:
    """The meaning of a frame's second and third byte; None if they are not of a frame (or of one of 'free' size)."""
    version, layer, bitrate, rate = second >> 3 & 3, 4 - (second >> 1 & 3), third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] >> (0 if version == 3 else 1 if version == 2 else 2)
    bits = 1000 * _BITRATES[(version == 3, layer)][bitrate - 1]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    padding = third >> 1 & 1
    size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    return _Header(size, samples, (version, layer, hertz))


@dataclass(slots=True)
class _Frame:
    start: int
    header: _Header
    channels: int


def _frame(data: bytes, start: int) -> _Frame | None:
    if start + 4 > len(data) or data[start] != 0xFF:
        return None
    header = _header(data[start + 1], data[start + 2])
    return _Frame(start, header, 1 if data[start + 3] >> 6 == 3 else 2) if header else None


def find_frames(data: bytes, start: int = 0, end: int | None = None) -> int | None:
    """Position of the first of three frames in a row (or of one or two, up to the end of the data), or None."""
    limit = start + _SEARCHED if end is None else end
    while (start := data.find(b"\xff", start, limit)) >= 0:
        position = start
        first = frame = _frame(data, start)
        for count in range(3):
            if frame is None or first is None or frame.header.kind != first.header.kind:
                break
            position += frame.header.size
            if count == 2 or position == len(data) or _tag_bytes(data, position):
                return start
            frame = _frame(data, position)
        start += 1
    return None


# --- Tags ------------------------------------------------------------------------------------------


def id3_bytes(data: bytes, start: int) -> int:
    """Bytes of the ID3v2 tag at a position, 0 if there is none."""
    if data[start : start + 3] != b"ID3" or start + 10 > len(data):
        return 0
    a, b, c, d = (byte & 0x7F for byte in data[start + 6 : start + 10])
    return 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if data[start + 5] & 0x10 else 0)


def _tag_bytes(data: bytes, start: int) -> int:
    """Bytes of the tag at a position between frames, 0 if there is none."""
    magic = data[start : start + 8]
    if magic.startswith(b"ID3"):
        return id3_bytes(data, start)
    if magic.startswith(b"TAG"):
        return 227 if magic.startswith(b"TAG+") else 128
    if magic == b"APETAGEX" and start + 32 <= len(data):
        return 32 + int.from_bytes(data[start + 12 : start + 16], "little")
    if magic == b"LYRICSBE":
        found = [end for end in (data.find(mark, start) for mark in (b"LYRICSEND", b"LYRICS200")) if end > 0]
        return min(found) + 9 - start if found else 0
    if magic and not any(magic):  # zeros
        return len(data) - start - len(data[start:].lstrip(b"\0"))
    return 0


# --- Tracks ----------------------------------------------------------------------------------------


@dataclass
class _Track:
    """Frames that were encoded in one go."""

    frames: list[_Frame] = field(default_factory=list)
    info: bytes = b""  # its frame with a Xing tag
    claimed: int | None = None  # frames, by that tag


@dataclass
class _Scan:
    """The frames of a file, and what is between them."""

    tracks: list[_Track] = field(default_factory=list)
    junk: int = 0  # bytes that are neither frames nor tags
    cut: bool = False  # the last frame is not complete


def read_mpeg(data: bytes) -> Contents:
    """Split MPEG audio into its tracks, each with a Xing frame that counts its frames."""
    scan = _scan(data)
    tracks = [track for track in scan.tracks if track.frames]
    problem = _problem(data, scan, tracks)
    if len(tracks) == 1 and not scan.junk and tracks[0].info and tracks[0].claimed == len(tracks[0].frames):
        return Contents([data], problem)
    return Contents([_with_count(data, track) for track in tracks] or [data], problem)


def _scan(data: bytes) -> _Scan:
    scan = _Scan()
    position = find_frames(data) or 0
    scan.junk += position
    while position < len(data):
        if tag := _tag_bytes(data, position):
            position += tag
            continue
        frame = _frame(data, position)
        if frame is None:
            found = find_frames(data, position, len(data))
            scan.junk += (len(data) if found is None else found) - position
            position = len(data) if found is None else found
        elif position + frame.header.size > len(data):
            scan.cut = True
            break
        else:
            _add(data, frame, scan.tracks)
            position += frame.header.size
    return scan


def _add(data: bytes, frame: _Frame, tracks: list[_Track]) -> None:
    """Add a frame to the last track, or begin a track with it."""
    offset = _info_offset(data, frame)
    if offset is not None:
        info = data[frame.start : frame.start + frame.header.size]
        counted = info[offset : offset + 4] != b"VBRI" and info[offset + 7] & 1
        claimed = int.from_bytes(info[offset + 8 : offset + 12], "big") if counted else None
        tracks.append(_Track([], info if counted else b"", claimed))
        return
    last = tracks[-1] if tracks else None
    full = last is not None and last.claimed is not None and len(last.frames) >= last.claimed
    if last is None or full or (last.frames and _kind(last.frames[0]) != _kind(frame)):
        tracks.append(_Track())
    tracks[-1].frames.append(frame)


def _kind(frame: _Frame) -> tuple[object, ...]:
    return (*frame.header.kind, frame.channels)


def _info_offset(data: bytes, frame: _Frame) -> int | None:
    """Position of a Xing or VBRI tag in a frame, None if it has none."""
    version, layer, _ = frame.header.kind
    if layer != 3:
        return None
    side = (17 if frame.channels == 1 else 32) if version == 3 else (9 if frame.channels == 1 else 17)
    for offset in {4 + side, 6 + side, 36}:
        if data[frame.start + offset : frame.start + offset + 4] in _INFO_MAGICS and frame.header.size >= offset + 12:
            return offset
    return None


def _problem(data: bytes, scan: _Scan, tracks: list[_Track]) -> tuple[str, str] | None:
    """Reason and detail if more than a frame is missing: frames that Xing counts, or bytes that are no frames."""
    found = sum(_seconds(track, len(track.frames)) for track in tracks)
    for track in tracks:
        if track.claimed is not None and track.claimed > len(track.frames) + 1:
            return "truncated", f"{found:.2f} s; {track.claimed - len(track.frames)} frames are missing"
    if scan.cut:
        return "truncated", f"{found:.2f} s; the last frame is cut off"
    if tracks and scan.junk > max(frame.header.size for frame in tracks[0].frames):
        return "damaged", f"{scan.junk} of {len(data)} bytes are not MPEG audio; {FIX}"
    return None


def _seconds(track: _Track, frames: int) -> float:
    header = track.frames[0].header
    return frames * header.samples / header.kind[2]


def _with_count(data: bytes, track: _Track) -> bytes:
    """A track as a file of its own, with a Xing frame that states its number of frames."""
    count = len(track.frames)
    body = b"".join(_runs(data, track.frames))
    if track.frames[0].header.kind[1] != 3:  # only layer III knows the tag
        return body
    if track.info:
        info = bytearray(track.info)
        offset = max(info.find(magic, 0, 44) for magic in _INFO_MAGICS)
        info[offset + 8 : offset + 12] = struct.pack(">I", count)
        return bytes(info) + body
    return _info_frame(data, track.frames[0], count) + body


def _runs(data: bytes, frames: list[_Frame]) -> Iterator[bytes]:
    """The bytes of frames, those that follow each other in one piece."""
    start = end = frames[0].start
    for frame in frames:
        if frame.start != end:
            yield data[start:end]
            start = frame.start
        end = frame.start + frame.header.size
    yield data[start:end]


def _info_frame(data: bytes, like: _Frame, count: int) -> bytes:
    """A frame of silence with a Xing tag that counts `count` frames."""
    head = bytearray(data[like.start : like.start + 4])
    head[1] |= 1  # no checksum
    for bitrate in range(1, 15):
        head[2] = bitrate << 4 | head[2] & 0x0D
        header = _header(head[1], head[2])
        if header and header.size >= _INFO_BYTES:
            break
    assert header
    mono = like.channels == 1
    side = (17 if mono else 32) if header.kind[0] == 3 else (9 if mono else 17)
    tag = b"Xing" + struct.pack(">II", 1, count)
    return bytes(head) + bytes(side) + tag + bytes(header.size - 4 - side - len(tag))
