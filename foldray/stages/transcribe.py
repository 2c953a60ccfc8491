"""The stage `transcribe`."""

from collections.abc import Sequence
from typing import Any

from foldray.errors import UserError
from foldray.evaluation.provenance import find_model


def transcribe_stage(
    model: str, store: str, files: Sequence[str], depth: int | None, decoding: Any = "ctc"
) -> list[dict[str, str]]:
    """`file` and `text` of each audio file at one depth (the deepest by default); `error` instead for a bad one."""
    from foldray.evaluation.decode import DECODINGS, transcribe

    if decoding not in DECODINGS:
        raise UserError("--decoding", f"'{decoding}' is none of {', '.join(DECODINGS)}")
    return transcribe(find_model(model, store).uri, files, depth, decoding)
