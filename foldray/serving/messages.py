"""What the HTTP side asks of a replica, and what it answers. Plain values: they travel between processes."""

from dataclasses import dataclass
from typing import Literal

from foldray.transcription.transcript import Transcript

AskedDepth = int | Literal["auto"] | None
"""A depth; `auto` for the shallowest that is sure enough; None for what the latency budget chooses."""


@dataclass(frozen=True)
class Ask:
    """A request for one recording.

    Attributes:
        depth: The depth to run.
        words: Whether words get times.
        language: Language code for a multilingual model.
        waited: Seconds since the request arrived.
    """

    depth: AskedDepth
    words: bool = False
    language: str = ""
    waited: float = 0.0


@dataclass(frozen=True)
class Answer:
    """A transcript, and how many rows each batch had that it took part in."""

    transcript: Transcript
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Refusal:
    """Why a request gets no transcript.

    Attributes:
        status: HTTP status.
        message: What is wrong and how to fix it; never a path or a text.
        code: A word for programs.
        param: The field of the request with the mistake.
    """

    status: int
    message: str
    code: str
    param: str | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What a server tells of its model.

    Attributes:
        depths: The depths that are served, shallowest first.
        languages: Codes of a multilingual model; empty for others.
        has_times: Whether words can have times.
        has_auto: Whether the depth `auto` is calibrated.
    """

    depths: tuple[int, ...]
    languages: tuple[str, ...] = ()
    has_times: bool = True
    has_auto: bool = False
