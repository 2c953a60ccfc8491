"""Containers of chunks or with one header (WAV, RF64, W64, AIFF, CAF, AU, SPHERE): the samples' own size decides.

What follows the header of the samples is compared with the size stated there. The size of the whole file is not: many
writers state it wrong. Writers to a pipe state 0 or the greatest number for an unknown size: all that follows is read.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from foldray.data.containers.contents import MOST_PARTS, TOO_MANY_PARTS, Contents
from foldray.data.containers.formats import FIX

_PIPED = 0x7F000000  # sizes from here on stand for an unknown one, where so much does not follow
_MPEG_TAGS = (0x50, 0x55)  # codecs of WAV: MPEG layers I and II, and III (RFC 2361)
_TRAILING_BYTES, _TRAILING_SHARE = 1024, 0.02  # what may follow the samples without being known


@dataclass(frozen=True)
class _Samples:
    """The samples of a file.

    Attributes:
        start: Their first byte.
        size: Their bytes as the header states, None if it states none.
        sizes: Where the header states sizes: position, struct format, and what is added to the bytes of samples.
        order: Byte order, as struct names it.
        follows: The end of a chunk that begins at a byte behind the samples, or None; without it, none may follow.
    """

    start: int
    size: int | None
    sizes: tuple[tuple[int, str, int], ...] = ()
    order: str = "<"
    follows: Callable[[memoryview, int], int | None] = lambda data, start: None


def read_chunks(data: bytes) -> Contents | None:
    """Compare the size that a header states with the bytes that follow; None for all other formats.

    Files that were joined are split, where each states its size.
    """
    parts: list[bytes] = []
    rest = memoryview(data)  # the files that are left: a slice of it copies nothing
    while len(parts) < MOST_PARTS:
        find = next((find for magic, find in _FORMATS.items() if _begins(rest, magic)), None)
        samples = find(rest) if find else None
        if find is None or samples is None:
            return Contents([*parts, bytes(rest) if parts else data]) if find or parts else None
        present = max(0, len(rest) - samples.start)  # a header may point behind the end
        stated = samples.size
        if stated is None or (stated >= _PIPED and stated > present) or _is_open(rest, samples):
            return Contents([*parts, _with_size(rest, samples, present)])
        if stated > present:
            return Contents(
                [*parts, bytes(rest) if parts else data], ("truncated", f"{present} of {stated} bytes of samples")
            )
        end = _end(rest, samples, stated)
        if end <= 0 or not any(_begins(rest, magic, end) for magic in _FORMATS):
            return Contents([*parts, bytes(rest) if parts else data], _trailing(rest, end, stated))
        parts.append(bytes(rest[:end]))
        rest = rest[end:]
    return Contents(parts, TOO_MANY_PARTS)


def mpeg_in_wav(data: bytes) -> bytes | None:
    """The MPEG audio that a WAV file holds, None for any other file: libsndfile guesses its length from the start."""
    view, tag = memoryview(data), 0
    for name, start, size in _walk(view, 12, "I", "<") if _begins(view, b"RIFF") else ():
        if name == b"fmt " and start + 2 <= len(data):
            (tag,) = struct.unpack_from("<H", data, start)
        if name == b"data":
            return data[start : start + (size or len(data))] if tag in _MPEG_TAGS else None
    return None


def _begins(data: memoryview, magic: bytes, start: int = 0) -> bool:
    return data[start : start + len(magic)] == magic


def _is_open(data: memoryview, samples: _Samples) -> bool:
    """Whether a stated size of 0 means that the file was never closed: no chunk follows, but something does."""
    return samples.size == 0 and samples.start < len(data) and _end(data, samples, 0) < len(data)


def _with_size(data: memoryview, samples: _Samples, size: int) -> bytes:
    """The file with the size of its samples in its header. Sizes that do not fit stay: libsndfile knows them."""
    patched = bytearray(data)
    for position, code, more in samples.sizes:
        if size + more < 2 ** (8 * struct.calcsize(code) - 1):
            struct.pack_into(samples.order + code, patched, position, size + more)
    return bytes(patched)


def _end(data: memoryview, samples: _Samples, size: int) -> int:
    """Where the chunks behind the samples end; some writers leave out the byte after an odd size."""
    ends = []
    for position in (samples.start + size, samples.start + size + size % 2):
        while (end := samples.follows(data, position)) is not None:
            position = end
        ends.append(min(position, len(data)))
    return max(ends) if max(ends) > samples.start + size + size % 2 else samples.start + size


def _trailing(data: memoryview, end: int, stated: int) -> tuple[str, str] | None:
    """Reason and detail if far more follows than the header states, other than zeros: it may be samples."""
    if len(data) - end <= max(_TRAILING_BYTES, _TRAILING_SHARE * stated) or not bytes(data[end:]).strip(b"\0"):
        return None
    return (
        "damaged",
        f"{len(data) - end} bytes follow the {stated} bytes of samples that its header states; {FIX}",
    )


# --- Formats ---------------------------------------------------------------------------------------


def _riff_chunk(data: memoryview, start: int) -> int | None:
    return _chunk_end(data, start, "<I")


def _riff_chunk_reversed(data: memoryview, start: int) -> int | None:
    return _chunk_end(data, start, ">I")


def _caf_chunk(data: memoryview, start: int) -> int | None:
    return _chunk_end(data, start, ">q")


def _chunk_end(data: memoryview, start: int, code: str) -> int | None:
    """The end of a chunk that is wholly in the data and does not begin another file, else None."""
    head = 4 + struct.calcsize(code)
    name = bytes(data[start : start + 4])
    if start + head > len(data) or not re.fullmatch(rb"[ -~]{4}", name) or name in _FORMATS:
        return None
    size = int(struct.unpack_from(code, data, start + 4)[0])
    end = start + head + size + (size % 2 if head == 8 else 0)
    return min(end, len(data)) if size >= 0 and start + head + size <= len(data) else None


def _w64_chunk(data: memoryview, start: int) -> int | None:
    """As above. Sizes include the header, and chunks begin at multiples of 8 bytes."""
    start = (start + 7) // 8 * 8
    if start + 24 > len(data) or _begins(data, _W64_RIFF, start):
        return None
    size = int(struct.unpack_from("<Q", data, start + 16)[0])
    return start + size if size >= 24 and start + size <= len(data) else None


def _walk(data: memoryview, start: int, code: str, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each chunk, whose name has 4 bytes."""
    head = 4 + struct.calcsize(code)
    while start + head <= len(data):
        size = int(struct.unpack_from(order + code, data, start + 4)[0])
        yield bytes(data[start : start + 4]), start + head, size
        start += head + size + (size % 2 if code == "I" else 0)


def _wav(data: memoryview) -> _Samples | None:
    order = ">" if _begins(data, b"RIFX") else "<"
    follows = _riff_chunk_reversed if order == ">" else _riff_chunk
    size64 = None
    for name, start, size in _walk(data, 12, "I", order):
        if name == b"ds64" and start + 16 <= len(data):
            size64 = start + 8
        if name == b"data" and size64 and size == 0xFFFFFFFF:
            stated = int(struct.unpack_from("<Q", data, size64)[0])
            sizes = ((size64, "Q", 0), (size64 - 8, "Q", start - 8))
            return _Samples(start, stated or None, sizes, order, _riff_chunk)
        if name == b"data":
            return _Samples(start, size, ((start - 4, "I", 0), (4, "I", start - 8)), order, follows)
    return None


def _aiff(data: memoryview) -> _Samples | None:
    for name, start, size in _walk(data, 12, "I", ">"):
        if name == b"SSND" and start + 8 <= len(data):
            offset = int(struct.unpack_from(">I", data, start)[0])
            first = start + 8 + offset
            stated = 0 if size == 0 else size - 8 - offset
            sizes = ((start - 4, "I", 8 + offset), (4, "I", first - 8))
            return _Samples(first, stated, sizes, ">", _riff_chunk_reversed)
    return None


def _caf(data: memoryview) -> _Samples | None:
    for name, start, size in _walk(data, 8, "q", ">"):
        if name == b"data":  # it begins with a number of edits
            return _Samples(start + 4, None if size < 4 else size - 4, ((start - 8, "q", 4),), ">", _caf_chunk)
        if size < 0:
            break
    return None


_W64_RIFF = b"riff\x2e\x91\xcf\x11"
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


def _w64(data: memoryview) -> _Samples | None:
    start = 40
    while start + 24 <= len(data):
        size = int(struct.unpack_from("<Q", data, start + 16)[0])
        if data[start : start + 16] == _W64_DATA:
            sizes = ((start + 16, "Q", 24), (16, "Q", start + 24))
            return _Samples(start + 24, size - 24 if size > 24 else 0, sizes, "<", _w64_chunk)
        start += max(24, (size + 7) // 8 * 8)
    return None


def _au(data: memoryview) -> _Samples | None:
    if len(data) < 24:
        return None
    order = ">" if _begins(data, b".snd") else "<"
    start, size = struct.unpack_from(order + "II", data, 4)
    return _Samples(start, None if size == 0xFFFFFFFF else size, ((8, "I", 0),), order)


def _sphere(data: memoryview) -> _Samples | None:
    lines = bytes(data[:64]).split(b"\n")
    start = int(lines[1]) if len(lines) > 1 and lines[1].strip().isdigit() else 1024
    fields = dict(re.findall(rb"(?m)^(\w+) -\w+ (.+)$", bytes(data[:start])))
    try:
        count, channels, width = (
            int(fields.get(name, default))
            for name, default in ((b"sample_count", 0), (b"channel_count", 1), (b"sample_n_bytes", 2))
        )
    except ValueError:
        return None
    if min(count, channels, width) < 0 or b"," in fields.get(b"sample_coding", b""):  # damaged, or compressed
        return None
    return _Samples(start, count * channels * width or None)


_FORMATS: dict[bytes, Callable[[memoryview], _Samples | None]] = {
    b"RIFF": _wav,
    b"RIFX": _wav,
    b"RF64": _wav,
    b"FORM": _aiff,
    b"caff": _caf,
    _W64_RIFF: _w64,
    b".snd": _au,
    b"dns.": _au,
    b"NIST_1A": _sphere,
}
"""The formats by their first bytes."""
