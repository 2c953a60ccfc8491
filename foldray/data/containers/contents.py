"""The result of checking an audio file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contents:
    """An audio file as libsndfile should read it.

    Attributes:
        parts: One or more files, decoded one after the other.
        problem: Quarantine reason and detail if samples of the whole are missing; those of `parts` can be read.
    """

    parts: list[bytes]
    problem: tuple[str, str] | None = None
