"""The result of checking an audio file."""

from dataclasses import dataclass

from foldray.data.containers.formats import FIX

MOST_PARTS = 1000
"""Most files in one: recordings of a day in segments of some minutes have hundreds."""
TOO_MANY_PARTS = ("damaged", f"it is more than {MOST_PARTS:,} files joined to one; {FIX}")


@dataclass(frozen=True)
class Contents:
    """An audio file as libsndfile should read it.

    Attributes:
        parts: One or more files, decoded one after the other.
        problem: Quarantine reason and detail if samples of the whole are missing; those of `parts` can be read.
    """

    parts: list[bytes]
    problem: tuple[str, str] | None = None
