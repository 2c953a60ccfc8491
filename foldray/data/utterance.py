"""One utterance as its source describes it: metadata only, and where its audio is stored."""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """Where audio is stored inside a container file.

    Attributes:
        kind: "bytes" for a byte range (of a tar), "row" for a row of a Parquet file.
        first: First byte, or number of the row group.
        second: Number of bytes, or number of the row in its row group.
    """

    kind: Literal["bytes", "row"]
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance as its source describes it.

    Attributes:
        id: Unique in the corpus.
        split: The split it belongs to.
        audio: URI of the audio file, or of the container that `entry` points into.
        text: The transcript; None where the source has no such field.
        row: Where the source describes it (`file:line`), for messages.
        speaker: Name of the speaker, "" if unknown.
        language: Language code, "" if unknown.
        duration: Seconds as declared, or None.
        start: Seconds into the file where a segment begins; None for a whole file.
        channel: The channel to read; None for the mean of all.
        entry: Where the audio is inside a container; None for a file of its own.
        bytes: Size of the audio; None where it is missing.
        problem: Quarantine reason and detail, where the source itself rules the utterance out.
    """

    id: str
    split: str
    audio: str
    text: str | None
    row: str
    speaker: str = ""
    language: str = ""
    duration: float | None = None
    start: float | None = None
    channel: int | None = None
    entry: ContainerEntry | None = None
    bytes: int | None = None
    problem: tuple[str, str] | None = None

    def values(self) -> list[object]:
        """The fields in order, as JSON represents them (not `astuple`, which copies deeply: ten times as slow)."""
        values = [getattr(self, name) for name in _FIELDS]
        values[_ENTRY] = self.entry and [self.entry.kind, self.entry.first, self.entry.second]
        return values


_FIELDS = [field.name for field in fields(Utterance)]
_ENTRY = _FIELDS.index("entry")
