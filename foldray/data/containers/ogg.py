"""Ogg: pages of logical streams, which may be joined one after the other (RFC 3533, section 6).

libsndfile reads the first of joined streams, passes over damaged pages, and takes a cut-off stream for a short one. So
the pages are checked, and every stream becomes a file of its own.
"""

import itertools
import zlib
from dataclasses import dataclass

from foldray.data.containers.contents import MOST_PARTS, TOO_MANY_PARTS, Contents
from foldray.data.containers.formats import FIX

_BEGINS, _ENDS = 2, 4  # header flags
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_UNKNOWN = 2**64 - 1  # the position of a page on which no packet ends
_CODECS = (b"OpusHead", b"\x01vorbis", b"\x7fFLAC", b"Speex   ")


@dataclass(frozen=True, slots=True)
class _Page:
    data: bytes
    flags: int
    position: int  # samples up to its end, of Opus at 48 kHz
    serial: int
    number: int
    body: int  # where its packets begin


def read_ogg(data: bytes) -> Contents:
    """Split an Ogg file into its streams, and check that no page is missing."""
    pages, lost = _pages(data)
    links = [_audio_pages(link) for link in _links(pages)]
    if len(links) > MOST_PARTS:
        return Contents([data], TOO_MANY_PARTS)
    problem = next(filter(None, map(_problem, links)), None)
    if lost and not problem:
        problem = "damaged", f"{lost} of {len(data)} bytes are not whole pages; {FIX}"
    whole = len(links) == 1 and len(links[0]) == len(pages) and not problem
    return Contents([data] if whole or not links else [_ended(link) for link in links], problem)


def _pages(data: bytes) -> tuple[list[_Page], int]:
    """The intact pages, and the bytes of all others (not those behind the last page, which may be any tag)."""
    pages: list[_Page] = []
    position = lost = 0
    while (found := data.find(b"OggS", position)) >= 0:
        lost += found - position
        page = _page(data, found)
        if page is None:
            lost += 4
            position = found + 4
        else:
            pages.append(page)
            position = found + len(page.data)
    return pages, lost


def _page(data: bytes, start: int) -> _Page | None:
    """The page at a position; None if it is cut off, or its checksum is wrong."""
    body = start + 27 + data[start + 26] if start + 27 <= len(data) else len(data) + 1
    end = body + sum(data[start + 27 : body])
    if end > len(data):
        return None
    page = data[start:end]
    if _checksum(page) != int.from_bytes(page[22:26], "little"):
        return None
    position, serial, number = (int.from_bytes(page[a:b], "little") for a, b in ((6, 14), (14, 18), (18, 22)))
    return _Page(page, page[5], position, serial, number, body - start)


def _checksum(page: bytes) -> int:
    """Ogg's CRC-32: that of zlib with the bits of all bytes and of the result in reverse, from 0, not inverted."""
    turned = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED)
    return int(f"{zlib.crc32(turned, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def _links(pages: list[_Page]) -> list[list[_Page]]:
    """The pages of each stream (or group of streams) of a chain: one begins after a page that does not begin any."""
    links: list[list[_Page]] = []
    begun = False
    for page in pages:
        begins = bool(page.flags & _BEGINS)
        if not links or (begins and not begun):
            links.append([])
        begun = begins
        links[-1].append(page)
    return links


def _audio_pages(link: list[_Page]) -> list[_Page]:
    """The pages of the first audio stream in a group, of the first of all if there is no audio."""
    audio = (page.serial for page in link if page.data[page.body :].startswith(_CODECS))
    serial = next(audio, link[0].serial)
    return [page for page in link if page.serial == serial]


def _problem(pages: list[_Page]) -> tuple[str, str] | None:
    """Reason and detail if pages are missing. Behind the headers, numbers may begin anywhere: in records of a station
    they do."""
    seconds = f"{_seconds(pages):.2f} s"
    for before, page in itertools.pairwise(pages):
        if page.number != (before.number + 1) % 2**32 and before.position not in (0, _UNKNOWN):
            missing = page.number - before.number - 1
            found = f"pages are missing, {missing} in one place" if missing > 0 else "pages are out of order"
            return "damaged", f"{found}; {FIX}"
    if not pages[-1].flags & _ENDS:
        return "truncated", f"{seconds}; the page that ends the stream is missing"
    return None


def _seconds(pages: list[_Page]) -> float:
    head = pages[0].data[pages[0].body :]
    ended = max((page.position for page in pages if page.position != _UNKNOWN), default=0)
    if head.startswith(b"OpusHead"):
        return max(0, ended - int.from_bytes(head[10:12], "little")) / 48_000
    rate = int.from_bytes(head[12:16], "little") if head.startswith(b"\x01vorbis") else 0
    if head.startswith(b"\x7fFLAC"):
        rate = int.from_bytes(head[27:30], "big") >> 4
    return ended / rate if rate else 0.0


def _ended(pages: list[_Page]) -> bytes:
    """A stream as a file of its own, whose last page says that it is the last."""
    last = bytearray(pages[-1].data)
    last[5] |= _ENDS
    last[22:26] = _checksum(bytes(last)).to_bytes(4, "little")
    return b"".join(page.data for page in pages[:-1]) + bytes(last)
