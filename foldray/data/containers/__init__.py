"""What audio files promise: their parts, and whether all of each part is there.

libsndfile reads a cut-off file as a shorter one, believes a length where the format has none, and stops at the end of
the first of several files that were joined. So every format's own structure is checked here, and libsndfile gets parts
whose headers state their true length.
"""

from foldray.data.containers.chunks import mpeg_in_wav, read_chunks
from foldray.data.containers.contents import Contents
from foldray.data.containers.flac import read_flac
from foldray.data.containers.mpeg import read_mpeg
from foldray.data.containers.mpeg_frames import find_frames, id3_bytes
from foldray.data.containers.ogg import read_ogg

__all__ = ["Contents", "read_contents"]


def read_contents(data: bytes) -> Contents:
    """Split a file into the parts that libsndfile decodes, and check that each is whole.

    Args:
        data: A file of any format, of at least one byte.

    Returns:
        The parts and the problem, if there is one. A format that is not checked here is its only part.
    """
    data = data[id3_bytes(data, 0) :]
    magic = data[:4]
    if magic == b"fLaC":
        return read_flac(data)
    if magic == b"OggS":
        return read_ogg(data)
    contents = read_chunks(data)
    if contents is not None:
        return _with_mpeg(contents)
    return read_mpeg(data) if find_frames(data) is not None else Contents([data])


def _with_mpeg(contents: Contents) -> Contents:
    """The parts, of those that hold MPEG audio the audio itself."""
    parts, problem = [], contents.problem
    for part in contents.parts:
        mpeg = mpeg_in_wav(part)
        inner = read_mpeg(mpeg) if mpeg and find_frames(mpeg) is not None else Contents([part])
        parts += inner.parts
        problem = problem or inner.problem
    return Contents(parts, problem)
