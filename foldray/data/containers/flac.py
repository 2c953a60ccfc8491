"""FLAC: the number of samples is in the header, or 0 from encoders that write to a pipe (RFC 9639, sections 8.2 and 9).

The number is then that of the last frame, which states its position. Files that were joined are split.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from foldray.data.containers.contents import MOST_PARTS, TOO_MANY_PARTS, Contents

_STREAM_INFO = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
_SEARCHED = 2**20  # bytes at the end in which the last frame is searched for; frames are some 10 kB
_TRIED = 3  # frames whose checksum is compared, from the last
_SIZES = {1: 192, 8: 256, 9: 512, 10: 1024, 11: 2048, 12: 4096, 13: 8192, 14: 16_384, 15: 32_768} | {
    code: 576 << (code - 2) for code in range(2, 6)
}


def _table(bits: int, polynomial: int) -> list[int]:
    """The checksums of all single bytes."""
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value >> (bits - 1) & 1 else value << 1) & ((1 << bits) - 1)
        table.append(value)
    return table


_CRC8, _CRC16 = _table(8, 0x07), _table(16, 0x8005)


@dataclass(frozen=True)
class _Frame:
    start: int  # byte
    first: int  # number of its first sample
    end: int  # number of samples up to its end


def read_flac(data: bytes) -> Contents:
    """Split joined FLAC files, and state the number of samples in headers that state none, or too few."""
    starts = sorted({0, *(at for magic in _STREAM_INFO for at in _occurrences(data, magic))})
    if len(starts) > MOST_PARTS:
        return Contents([data], TOO_MANY_PARTS)
    parts, problem = [], None
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        part, cut = _with_total(data[start:end] if len(starts) > 1 else data)
        parts.append(part)
        problem = problem or cut
    return Contents(parts, problem)


def _occurrences(data: bytes, magic: bytes) -> list[int]:
    found = []
    position = data.find(magic)
    while position >= 0:
        found.append(position)
        position = data.find(magic, position + 1)
    return found


def _with_total(data: bytes) -> tuple[bytes, tuple[str, str] | None]:
    """The file with the true number of samples in its header, and the problem if it is cut off."""
    if len(data) < 42 or data[4] & 0x7F:
        return data, None
    total = int.from_bytes(data[21:26], "big") & (2**36 - 1)
    rate = int.from_bytes(data[18:21], "big") >> 4
    end = len(data) - 128 if data[-128:-125] == b"TAG" else len(data)
    frames = list(itertools.islice(_last_frames(data, _audio_start(data), end), 1 if total else _TRIED))
    if not frames or not rate or 0 < frames[0].end <= total:
        return data, None
    whole = next((frame for frame in frames if _checksum(data[frame.start : end]) == 0), None)
    if whole is None and total:
        return data, None
    samples = whole.end if whole else frames[0].first
    patched = (int.from_bytes(data[21:26], "big") & ~(2**36 - 1)) | samples
    problem = None if whole else ("truncated", f"{samples / rate:.2f} s; the last frame is cut off")
    return data[:21] + patched.to_bytes(5, "big") + data[26:], problem


def _audio_start(data: bytes) -> int:
    """Where the metadata blocks end."""
    position, last = 4, False
    while not last and position + 4 <= len(data):
        last = bool(data[position] & 0x80)
        position += 4 + int.from_bytes(data[position + 1 : position + 4], "big")
    return position


def _last_frames(data: bytes, start: int, end: int) -> Iterator[_Frame]:
    """What looks like a frame, the last first. In 10 kB of one frame, the start of another appears in 1 of 4,000."""
    fixed = int.from_bytes(data[8:10], "big")
    position = end
    while (position := data.rfind(b"\xff", max(start, end - _SEARCHED), position)) >= 0:
        numbers = _frame_samples(data, position, fixed)
        if numbers:
            yield _Frame(position, *numbers)


def _frame_samples(data: bytes, start: int, fixed: int) -> tuple[int, int] | None:
    """Numbers of the first sample of a frame and of the one after it; None if no frame begins here."""
    head = data[start : start + 16]
    if (
        len(head) < 6
        or head[1] & 0xFE != 0xF8
        or head[3] & 1
        or head[2] < 16
        or head[2] & 15 == 15
        or head[4] >> 6 == 2
    ):
        return None
    length = max(1, 8 - (head[4] ^ 0xFF).bit_length())  # of the number, coded like UTF-8
    if length > 7 or any(byte >> 6 != 2 for byte in head[5 : 4 + length]):
        return None
    number = head[4] if length == 1 else head[4] & (0x7F >> length)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    position, code = 4 + length, head[2] >> 4
    size = _SIZES.get(code, 0)
    if code in (6, 7):
        size = int.from_bytes(head[position : position + code - 5], "big") + 1
        position += code - 5
    position += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if position >= len(head):
        return None
    value = 0
    for byte in head[: position + 1]:  # with the checksum itself the result is 0
        value = _CRC8[value ^ byte]
    first = number if head[1] & 1 else number * fixed
    return None if value else (first, first + size)


def _checksum(frame: bytes) -> int:
    """The CRC-16 of a frame, 0 if its last two bytes are that of the others."""
    value = 0
    for byte in frame:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value
