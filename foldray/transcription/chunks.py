"""Cutting a recording of any length into chunks that a model takes, in pauses of speech where there are any."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foldray.config.corpus import SAMPLE_RATE

Samples = npt.NDArray[np.float32]

LEVEL_SAMPLES = 320  # 20 ms
SMOOTHED = 11
"""Levels averaged around a cut: 220 ms. Closures of stops are shorter (50 to 150 ms), pauses of speech longer."""
LONG_PAUSE = 21
"""Smoothed levels of a pause between sentences: 420 ms."""
PAUSE_DECIBEL = 25.0
"""How far below the loud parts of its surroundings a pause is."""


@dataclass(frozen=True)
class Chunk:
    """A part of a recording.

    Attributes:
        samples: The part's own samples with some of its neighbours' on either side, (T,).
        start: Sample of the recording that `samples` begins with.
        begin, end: Samples of the recording that are the part's own; those of all chunks follow each other.
        overlaps: Whether the neighbours' samples hold speech that goes on over the part's ends (no pause was found).
    """

    samples: Samples
    start: int
    begin: int
    end: int
    overlaps: tuple[bool, bool] = (False, False)


def cut_chunks(pieces: Iterable[Samples], seconds: float, context: float, step: int = LEVEL_SAMPLES) -> Iterator[Chunk]:
    """Cut a stream of samples in pauses of speech.

    A chunk ends in the first long pause behind its first quarter; without one, where its second half is quietest. Only
    a cut without any pause has context on either side, for which the chunk's own part is shorter.

    Args:
        pieces: Consecutive samples at 16 kHz.
        seconds: Longest chunk, context included.
        context: Seconds of the neighbours that a chunk gets on a side where no pause was found.
        step: All cuts, and all starts of context, are multiples of so many samples.
    """
    margin = int(context * SAMPLE_RATE) // step * step
    longest = int(seconds * SAMPLE_RATE) // step * step
    buffer, first = np.zeros(0, np.float32), 0  # the samples from `first` of the recording on
    begin, open_before = 0, False
    for piece in pieces:
        buffer = np.concatenate([buffer, piece])
        while first + len(buffer) - begin > (most := max(step, longest - margin * open_before)):
            length, pause = _cut(buffer[begin - first : begin - first + most], margin, step)
            end, open_after = begin + length, margin > 0 and not pause
            yield _chunk(buffer, first, begin, end, margin, (open_before, open_after))
            begin, open_before = end, open_after
            keep = max(first, begin - margin)
            buffer, first = buffer[keep - first :], keep
    if first + len(buffer) > begin:
        yield _chunk(buffer, first, begin, first + len(buffer), margin, (open_before, False))


def _chunk(buffer: Samples, first: int, begin: int, end: int, margin: int, overlaps: tuple[bool, bool]) -> Chunk:
    start = max(first, begin - margin) if overlaps[0] else begin
    stop = min(first + len(buffer), end + margin) if overlaps[1] else end
    return Chunk(buffer[start - first : stop - first], start, begin, end, overlaps)


def _cut(own_T: Samples, margin: int, step: int) -> tuple[int, bool]:
    """Where to cut some samples, as a multiple of `step`, and whether that is in a pause."""
    levels = decibels(own_T)
    quiet = float(np.percentile(levels, 95)) - PAUSE_DECIBEL
    smooth = np.convolve(np.pad(levels, SMOOTHED // 2, mode="edge"), np.full(SMOOTHED, 1 / SMOOTHED), mode="valid")
    half = len(smooth) // 2
    edges = np.flatnonzero(np.diff(np.pad(smooth[len(smooth) // 4 :] <= quiet, 1).astype(int))) + len(smooth) // 4
    long = [(begin, end) for begin, end in edges.reshape(-1, 2) if end - begin >= LONG_PAUSE]
    found, pause = (int(sum(long[0])) // 2, True) if long else (half + int(np.argmin(smooth[half:])), False)
    pause = pause or bool(smooth[found] <= quiet)
    if not pause:
        end = max(half + 1, len(smooth) - margin // LEVEL_SAMPLES)
        found = half + int(np.argmin(smooth[half:end]))
    cut = round((found + 0.5) * LEVEL_SAMPLES / step) * step
    return min(max(step, cut), len(own_T) // step * step), pause


def decibels(samples_T: Samples) -> npt.NDArray[np.float64]:
    """Level of every 20 ms in dB of full scale."""
    whole = samples_T[: len(samples_T) // LEVEL_SAMPLES * LEVEL_SAMPLES].reshape(-1, LEVEL_SAMPLES)
    levels: npt.NDArray[np.float64] = 10 * np.log10(np.mean(np.square(whole, dtype=np.float64), axis=1) + 1e-10)
    return levels
