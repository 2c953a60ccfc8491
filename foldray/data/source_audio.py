"""Reading the audio of an utterance from its source: a file, a segment of one, or an entry of a container."""

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldray import storage
from foldray.data.audio import decode
from foldray.data.samples import BadAudioError
from foldray.data.utterance import Utterance
from foldray.errors import one_line
from foldray.storage.parquet import read_row_group


def read_audio(utterance: Utterance, max_seconds: float) -> npt.NDArray[np.float32]:
    """Mono samples at 16 kHz, (T,), of an utterance; of a segment only its own part of the file is read.

    Raises:
        BadAudioError: The audio is not usable.
        FileNotFoundError: The file does not exist.
    """
    timing = (utterance.duration, utterance.start, utterance.channel, max_seconds)
    entry = utterance.entry
    if entry is None:
        if utterance.start is None:
            return decode(storage.read_bytes(utterance.audio), *timing)
        with storage.open_file(utterance.audio) as file:
            return decode(file, *timing)
    if entry.kind == "bytes":
        return decode(storage.read_range(utterance.audio, entry.first, entry.second), *timing)
    try:
        audio = _source_audio(utterance.audio, entry.first)[entry.second].as_py()
    except (pa.ArrowException, IndexError) as error:
        raise BadAudioError("unreadable", f"{utterance.audio}: {one_line(error)}") from None
    return decode(audio["bytes"] if isinstance(audio, dict) else audio, *timing)


@functools.lru_cache(maxsize=1)
def _source_audio(uri: str, row_group: int) -> pa.ChunkedArray:
    """The column `audio` of a row group of a Parquet source. One is kept: tasks read them one after the other."""
    return read_row_group(uri, row_group, ["audio"])["audio"]
