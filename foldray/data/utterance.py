"""One utterance as its source describes it: metadata only, and where its audio lies."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Within:
    """A place inside a container file: `bytes` of a tar from `first` on, or one row of a Parquet row group.

    kind "bytes": first byte and length; kind "row": number of the row group and of the row in it.
    """

    kind: str
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance as its source describes it.

    audio: URI of the file, or of the container that holds it (`within` says where); row: where it was
    described, for messages; duration: seconds as declared, or None; text: None where the source has no
    such field; start: seconds into the file where a segment begins, None for a whole file; channel: the
    channel to take, None for the mean of all; bytes: size of the audio, None where it is missing;
    problem: reason and detail where the source itself rules it out.
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
    within: Within | None = None
    bytes: int | None = None
    problem: tuple[str, str] | None = None

    def values(self) -> list[Any]:
        """The fields in their order, as JSON holds them. (Not `astuple`, which copies deeply: ten times as slow.)"""
        own = [getattr(self, name) for name in _NAMES]
        own[_WITHIN] = self.within and [self.within.kind, self.within.first, self.within.second]
        return own

    @classmethod
    def of(cls, values: list[Any]) -> "Utterance":
        """The utterance of `values`, from JSON or not."""
        fields = dict(zip(_NAMES, values, strict=True))
        fields["within"] = fields["within"] and Within(*fields["within"])
        fields["problem"] = fields["problem"] and tuple(fields["problem"])
        return cls(**fields)


_NAMES = [field.name for field in fields(Utterance)]
_WITHIN = _NAMES.index("within")
