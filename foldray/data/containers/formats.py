"""Formats by their first bytes: those whose completeness is checked, and those that are named, but not decoded."""

import re

CHECKED_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "NIST", "AIFF", "AU", "CAF")
"""The formats, as soundfile calls them, whose stated length is compared with their content."""
FIX = "write it as FLAC or OGG, for example with ffmpeg"

_NOT_AUDIO = {
    b"\x89png": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"gif8": "a GIF image",
    b"%pdf": "a PDF document",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"{": "JSON",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
}
"""Content that is not audio by its first bytes in lower case."""

_UNSUPPORTED = {
    rb".{4}ftyp": "MP4, M4A or 3GP (AAC or ALAC)",
    rb"\xff[\xf0\xf1\xf8\xf9]": "AAC",
    rb"ADIF": "AAC",
    rb"\x1aE\xdf\xa3": "WebM or Matroska",
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "WMA",
    rb"#!AMR": "AMR",
    rb"#!SILK|\x02#!SILK": "SILK",
    rb"MAC ": "Monkey's Audio",
    rb"wvpk": "WavPack",
    rb"TTA[12]": "TTA",
    rb"MPCK|MP\+": "Musepack",
    rb"OFR ": "OptimFROG",
    rb"\.RMF|\.ra\xfd": "RealAudio",
    rb"FLV": "Flash video",
    rb"RIFF.{4}AVI ": "AVI",
    rb"DSD |FRM8": "DSD",
    rb"\x0bw": "AC-3",
    rb"\x7f\xfe\x80\x01": "DTS",
    rb"MThd": "MIDI",
    rb"ajkg": "Shorten",
    rb"\x47.{187}\x47.{187}\x47": "MPEG transport stream",
}
"""Audio that is not decoded, by a pattern of its first bytes."""


def other_format(data: bytes) -> tuple[str, str] | None:
    """Reason and detail for a file of a format that is not decoded; None for all others."""
    head = data[:1024]
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        return "unreadable", "SPHERE compressed with shorten; write it as WAV or FLAC with sph2pipe"
    for pattern, kind in _UNSUPPORTED.items():
        if re.match(pattern, head, re.DOTALL):
            return "unsupported_format", f"the content is {kind}; {FIX}"
    for start, kind in _NOT_AUDIO.items():
        if head.lstrip().lower().startswith(start):
            return "not_audio", f"the content is {kind}, despite the file name"
    return None
