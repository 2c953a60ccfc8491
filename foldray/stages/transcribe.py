"""The stage `transcribe`: text for audio files."""

from collections.abc import Sequence

from foldray.evaluation.provenance import find_model


def transcribe_stage(
    model: str, store: str, files: Sequence[str], depth: int | None, decoding: str = "ctc"
) -> list[dict[str, str]]:
    """Transcribe audio files at one depth, the deepest by default.

    Returns:
        For each file `file` and `text`, or `file` and `error` if it can't be read.
    """
    from foldray.evaluation.decode import parse_decoding, transcribe

    return transcribe(find_model(model, store).uri, files, depth, parse_decoding(decoding))
