"""MPEG audio (MP3): a stream of frames, whose length no header needs to state.

Xing's frame may count the frames, but is missing in streams, and counts only the first of several joined files. So the
frames are counted, and every track gets a Xing frame with its own number (ISO 11172-3, 2.4.1.3; LAME's mp3 info tag).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from foldray.data.containers.contents import MOST_PARTS, TOO_MANY_PARTS, Contents
from foldray.data.containers.formats import FIX
from foldray.data.containers.mpeg_frames import Frame, find_frames, frame_at, header_of, tag_bytes

_INFO_MAGICS = (b"Xing", b"Info", b"VBRI")
_INFO_BYTES = 64  # a frame that holds a Xing tag with the number of frames


@dataclass
class _Track:
    """Frames that were encoded in one go."""

    frames: list[Frame] = field(default_factory=list)
    info: bytes = b""  # its frame with a Xing tag
    claimed: int | None = None  # frames, by that tag


@dataclass
class _Scan:
    """The frames of a file, and what is between them."""

    tracks: list[_Track] = field(default_factory=list)
    junk: int = 0  # bytes that are neither frames nor tags
    cut: bool = False  # the last frame, or a tag before one, is not complete


def read_mpeg(data: bytes) -> Contents:
    """Split MPEG audio into its tracks, each with a Xing frame that counts its frames."""
    scan = _scan(data)
    tracks = [track for track in scan.tracks if track.frames]
    if len(tracks) > MOST_PARTS:
        return Contents([data], TOO_MANY_PARTS)
    problem = _problem(data, scan, tracks)
    if len(tracks) == 1 and not scan.junk and tracks[0].info and tracks[0].claimed == len(tracks[0].frames):
        return Contents([data], problem)
    return Contents([_with_count(data, track) for track in tracks] or [data], problem)


def _scan(data: bytes) -> _Scan:
    scan = _Scan()
    position = find_frames(data) or 0
    scan.junk += position
    while position < len(data):
        tag = tag_bytes(data, position)
        if data.startswith(b"ID3", position) and position + max(tag, 10) > len(data):  # it precedes frames
            scan.cut = True
            break
        if tag:
            position += tag
            continue
        frame = frame_at(data, position)
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


def _add(data: bytes, frame: Frame, tracks: list[_Track]) -> None:
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


def _kind(frame: Frame) -> tuple[object, ...]:
    return (*frame.header.kind, frame.channels)


def _info_offset(data: bytes, frame: Frame) -> int | None:
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
        return "truncated", f"{found:.2f} s; the end is cut off"
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


def _runs(data: bytes, frames: list[Frame]) -> Iterator[bytes]:
    """The bytes of frames, those that follow each other in one piece."""
    start = end = frames[0].start
    for frame in frames:
        if frame.start != end:
            yield data[start:end]
            start = frame.start
        end = frame.start + frame.header.size
    yield data[start:end]


def _info_frame(data: bytes, like: Frame, count: int) -> bytes:
    """A frame of silence with a Xing tag that counts `count` frames."""
    head = bytearray(data[like.start : like.start + 4])
    head[1] |= 1  # no checksum
    for bitrate in range(1, 15):
        head[2] = bitrate << 4 | head[2] & 0x0D
        header = header_of(head[1], head[2])
        if header and header.size >= _INFO_BYTES:
            break
    assert header
    mono = like.channels == 1
    side = (17 if mono else 32) if header.kind[0] == 3 else (9 if mono else 17)
    tag = b"Xing" + struct.pack(">II", 1, count)
    return bytes(head) + bytes(side) + tag + bytes(header.size - 4 - side - len(tag))
