"""The utterances of what a transcription of corpora is given: corpora, prepared ones, folders, files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foldray import storage
from foldray.data.corpora import encodable
from foldray.data.speech import Speech, find_speech, prepared_speech
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage.layout import PreparedCorpus, Store
from foldray.transcription.inputs import MANIFESTS, find_inputs


@dataclass(frozen=True)
class Source:
    """What was given, and what is in it.

    Attributes:
        names: What was given; local paths are absolute.
        utterances: All utterances, in order.
        notes: Lines for the user: how each was read.
    """

    names: list[str]
    utterances: list[Utterance]
    notes: list[str]


def find_source(given: Sequence[str], store: str, splits: Sequence[str] = ()) -> Source:
    """Find all utterances of corpora, folders and files.

    Args:
        given: Prepared corpora (also by their ids in the store), corpora in any layout, folders or prefixes with audio,
            patterns, manifests, files.
        store: The store that ids refer to.
        splits: Splits of corpora to read; all by default.

    Raises:
        UserError: One of them has no audio, does not exist, or lacks the split.
    """
    names, utterances, notes = [], [], []
    for each in given:
        prepared = _prepared(each, store)
        names.append(prepared or (storage.absolute(each) if "://" not in each else each))
        speech = prepared_speech(prepared, splits) if prepared else _in_layout(each, splits)
        if speech is None:
            if splits:
                raise UserError(
                    "--split", f"{each} has no {' or '.join(splits)}; leave it out to read all of its audio"
                )
            speech = Speech(_files(each, alone=len(given) == 1), "files")
        if not speech.utterances:
            raise UserError(each, "has no utterances")
        utterances += speech.utterances
        notes.append(f"{each}, read as {speech.layout}: {len(speech.utterances):,} utterances")
        notes += [speech.note] if speech.note else []
    return Source(names, utterances, notes)


def _prepared(given: str, store: str) -> str | None:
    """The URI of a prepared corpus, None for anything else."""
    named = [Store(store).corpus(given).uri] if storage.is_relative(given) else []
    for uri in (storage.absolute(given), *named):
        if storage.exists(PreparedCorpus(uri).manifest) and storage.exists(PreparedCorpus(uri).index):
            return uri
    return None


def _in_layout(given: str, splits: Sequence[str]) -> Speech | None:
    is_folder = not given.lower().partition("?")[0].endswith(MANIFESTS) and "*" not in given
    return find_speech(given, splits) if is_folder and storage.is_folder(storage.absolute(given)) else None


def _files(given: str, *, alone: bool) -> list[Utterance]:
    """Audio files with their paths in the folder as ids, or their URIs where several folders were given."""
    found = [encodable(each) for each in find_inputs([given])]
    folder = storage.absolute(given)
    for i, each in enumerate(found):
        if each.id == each.audio:  # a file, not a row
            uri = storage.absolute(each.audio)
            name = storage.relative(uri, folder) if alone else uri
            found[i] = replace(each, id=storage.filesystem_path(name) if "://" in name else name, audio=uri, row=uri)
    unknown = [i for i, each in enumerate(found) if each.bytes is None and not each.duration and not each.problem]
    sizes = storage.file_sizes(found[i].audio for i in unknown)
    for i, size in zip(unknown, sizes, strict=True):
        found[i] = replace(found[i], bytes=size)
    return found
