"""Lhotse cut manifests, through the lhotse library, which is an extra."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import tempfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from foldray import storage
from foldray.data.layouts.source_folder import SourceFolder, file_name, parent
from foldray.data.utterance import Utterance
from foldray.errors import UserError, one_line
from foldray.runtime.extras import check_extra
from foldray.storage.parquet import MAX_ROWS
from foldray.storage.text import MAX_LINE_BYTES

if TYPE_CHECKING:
    from lhotse import MonoCut
    from lhotse.audio import AudioSource

_ENDING = ".jsonl.gz"
_READABLE = ("file", "url")


def find_lhotse(source: SourceFolder, name: str) -> list[str]:
    """`cuts_<name>.jsonl.gz`, `<name>_cuts.jsonl.gz` or `<name>.jsonl.gz`, or all of `<name>/cuts*.jsonl.gz`."""
    above, _, own = name.rpartition("/")
    for file in (f"cuts_{own}{_ENDING}", f"{own}_cuts{_ENDING}", f"{own}{_ENDING}", own):
        if file.endswith(_ENDING) and file in source.files(above):
            return [source.uri(above, file)]
    inside = source.files(name)
    return [source.uri(name, file) for file in inside if file.startswith("cuts") and file.endswith(_ENDING)]


def read_lhotse(uri: str, split: str, source: SourceFolder) -> Iterator[Utterance]:
    """Yield the utterances of one manifest: cuts of one channel of one stored recording, of any length.

    Any other cut (mixed, padded or multi-channel, audio in memory or from commands, transforms) has the problem
    unsupported_cut. Of a damaged manifest, the lines before the damage are kept, and one utterance named after the
    manifest is unreadable.

    Raises:
        UserError: lhotse is not installed, or a line is not JSON.
    """
    check_extra("lhotse", "lhotse", where="corpus.layout", what="lhotse")
    from lhotse.serialization import load_jsonl

    with _local_copy(source.text_file(uri)) as path:
        number = 0
        try:
            _check_lines(path, uri)
            for number, fields in enumerate(load_jsonl(path), start=1):
                yield _parse_cut(fields, f"{uri}:{number}", uri, split, source)
        except ValueError as error:
            row = f"{uri}:{number + 1}"
            raise UserError(row, f"is not JSON ({one_line(error)}); fix or remove the line") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = ("unreadable", f"a damaged manifest after line {number}: {one_line(error)}")
            yield Utterance(file_name(uri), split, uri, None, f"{uri}:{number + 1}", problem=problem)


def _check_lines(path: str, uri: str) -> None:
    """Raise UserError for a line, or a number of lines, that only a hostile file has: gzip packs a thousandfold."""
    with gzip.open(path) as file:
        for number in itertools.count(1):
            try:
                size = len(file.readline(MAX_LINE_BYTES + 1))
            except (EOFError, zlib.error, gzip.BadGzipFile):
                return  # the lines before the damage are read
            if size > MAX_LINE_BYTES or number > MAX_ROWS:
                limit = f"a line of over {MAX_LINE_BYTES:,} bytes, or over {MAX_ROWS:,} lines"
                raise UserError(f"{uri}:{number}", f"begins {limit}; remove it")
            if not size:
                return


@contextlib.contextmanager
def _local_copy(uri: str) -> Iterator[str]:
    """The manifest as a local file, which lhotse opens by its name."""
    if storage.is_local(uri):
        yield storage.absolute(uri)
        return
    with tempfile.NamedTemporaryFile(suffix=_ENDING) as copy:
        copy.write(storage.read_bytes(uri))
        copy.flush()
        yield copy.name


def _parse_cut(fields: object, row: str, uri: str, split: str, source: SourceFolder) -> Utterance:
    from lhotse.serialization import deserialize_item

    name = str(fields.get("id", row)) if isinstance(fields, dict) else row
    kind = fields.get("type") if isinstance(fields, dict) else None
    try:
        if kind not in ("MonoCut", "Cut"):
            raise _UnsupportedError(f"it is a {kind or 'line without a type'}, not a MonoCut")
        return _from_mono_cut(deserialize_item(fields), row, uri, split, source)
    except _UnsupportedError as error:
        problem = str(error)
    except Exception as error:  # lhotse raises errors of many types for an invalid cut
        problem = f"lhotse cannot read it: {one_line(error)}"
    return Utterance(name, split, "", None, row, problem=("unsupported_cut", problem))


class _UnsupportedError(Exception):
    """Why a cut can't be an utterance."""


def _from_mono_cut(cut: MonoCut, row: str, uri: str, split: str, source: SourceFolder) -> Utterance:
    stored = _only_source(cut)
    supervisions = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    texts = [supervision.text for supervision in supervisions if supervision.text is not None]
    recording = cut.recording
    whole = cut.start == 0 and abs(cut.duration - recording.duration) * recording.sampling_rate < 1
    return Utterance(
        id=cut.id,
        split=split,
        audio=source.audio(stored.source, parent(uri)),
        text=" ".join(texts) if texts else None,
        row=row,
        speaker=(supervisions[0].speaker or "") if supervisions else "",
        language=(supervisions[0].language or "") if supervisions else "",
        duration=cut.duration,
        start=None if whole else cut.start,
        channel=None if len(stored.channels) == 1 else stored.channels.index(cut.channel),
    )


def _only_source(cut: MonoCut) -> AudioSource:
    """The one file that contains a cut's recording. Raises _UnsupportedError for cuts that need more than a reader."""
    recording = cut.recording
    if recording is None:
        raise _UnsupportedError("it has features but no recording")
    if recording.transforms:
        raise _UnsupportedError("its recording has transforms, which are not applied; store the transformed audio")
    if len(recording.sources) != 1:
        raise _UnsupportedError(f"its recording has {len(recording.sources)} sources")
    stored = recording.sources[0]
    if stored.type not in _READABLE:
        raise _UnsupportedError(f"its audio is of type '{stored.type}', not {' or '.join(_READABLE)}")
    if cut.channel not in stored.channels:
        raise _UnsupportedError(f"its recording has no channel {cut.channel}")
    return stored
