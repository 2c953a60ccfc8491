"""Lhotse cut manifests, through the lhotse library, which is an extra."""

import contextlib
import gzip
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

from foldray import storage
from foldray.data.layouts.place import Place, file_name, parent
from foldray.data.utterance import Utterance
from foldray.errors import UserError, one_line
from foldray.runtime.extras import check_extra

_ENDING = ".jsonl.gz"
_READABLE = ("file", "url")


def find_lhotse(place: Place, name: str) -> list[str]:
    """`cuts_<name>.jsonl.gz`, `<name>_cuts.jsonl.gz` or `<name>.jsonl.gz`, or all of `<name>/cuts*.jsonl.gz`."""
    above, _, own = name.rpartition("/")
    for file in (f"cuts_{own}{_ENDING}", f"{own}_cuts{_ENDING}", f"{own}{_ENDING}", own):
        if file.endswith(_ENDING) and file in place.files(above):
            return [place.uri(above, file)]
    inside = place.files(name)
    return [place.uri(name, file) for file in inside if file.startswith("cuts") and file.endswith(_ENDING)]


def read_lhotse(uri: str, split: str, place: Place) -> Iterator[Utterance]:
    """Utterances of one manifest: cuts of one channel of one stored recording, as long as they are.

    Anything else (mixed, padded or multi-channel cuts, audio in memory or from commands, transforms)
    has the problem unsupported_cut. Of a damaged manifest, what came whole stays, and one utterance
    named after it is unreadable. Raises UserError without lhotse.
    """
    check_extra("lhotse", "lhotse", where="corpus.layout", what="lhotse")
    from lhotse.serialization import deserialize_item, load_jsonl

    with _local_copy(uri) as path:
        number = 0
        try:
            for number, entry in enumerate(load_jsonl(path), start=1):
                yield _read_cut(entry, deserialize_item, f"{uri}:{number}", uri, split, place)
        except ValueError as error:
            row = f"{uri}:{number + 1}"
            raise UserError(row, f"is not JSON ({one_line(error)}); mend or remove the line") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problem = ("unreadable", f"a damaged manifest after line {number}: {one_line(error)}")
            yield Utterance(file_name(uri), split, uri, None, f"{uri}:{number + 1}", problem=problem)


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


def _read_cut(entry: Any, deserialize: Any, row: str, uri: str, split: str, place: Place) -> Utterance:
    name = str(entry.get("id", row)) if isinstance(entry, dict) else row
    kind = entry.get("type") if isinstance(entry, dict) else None
    try:
        if kind not in ("MonoCut", "Cut"):
            raise _UnsupportedError(f"it is a {kind or 'line without a type'}, not a MonoCut")
        return _from_mono_cut(deserialize(entry), row, uri, split, place)
    except _UnsupportedError as error:
        why = str(error)
    except Exception as error:  # whatever lhotse raises for a cut that is not as it should be
        why = f"lhotse cannot read it: {one_line(error)}"
    return Utterance(name, split, "", None, row, problem=("unsupported_cut", why))


class _UnsupportedError(Exception):
    """Why a cut can't be an utterance."""


def _from_mono_cut(cut: Any, row: str, uri: str, split: str, place: Place) -> Utterance:
    source = _only_source(cut)
    said = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    texts = [supervision.text for supervision in said if supervision.text is not None]
    recording = cut.recording
    whole = cut.start == 0 and abs(cut.duration - recording.duration) * recording.sampling_rate < 1
    return Utterance(
        id=cut.id,
        split=split,
        audio=place.audio(source.source, parent(uri)),
        text=" ".join(texts) if texts else None,
        row=row,
        speaker=(said[0].speaker or "") if said else "",
        language=(said[0].language or "") if said else "",
        duration=cut.duration,
        start=None if whole else cut.start,
        channel=None if len(source.channels) == 1 else source.channels.index(cut.channel),
    )


def _only_source(cut: Any) -> Any:
    """The one file that a cut's recording lies in. Raises _UnsupportedError for cuts that need more than a reader."""
    recording = cut.recording
    if recording is None:
        raise _UnsupportedError("it has features but no recording")
    if recording.transforms:
        raise _UnsupportedError("its recording has transforms, which are not applied; store what they make")
    if len(recording.sources) != 1:
        raise _UnsupportedError(f"its recording has {len(recording.sources)} sources")
    source = recording.sources[0]
    if source.type not in _READABLE:
        raise _UnsupportedError(f"its audio is of type '{source.type}', not {' or '.join(_READABLE)}")
    if cut.channel not in source.channels:
        raise _UnsupportedError(f"channel {cut.channel} is none of its recording's")
    return source
