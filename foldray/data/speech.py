"""All speech of a source, whether it has texts or not: what a model transcribes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foldray import storage
from foldray.config.corpus import SAMPLE_RATE
from foldray.data.audio_files import with_sizes
from foldray.data.audio_places import AudioPlaces
from foldray.data.corpora import encodable, find_split
from foldray.data.identity import unique_ids
from foldray.data.layouts import LAYOUTS, SourceFolder
from foldray.data.manifest import read_index, read_manifest
from foldray.data.utterance import ContainerEntry, Utterance
from foldray.storage.layout import PreparedCorpus

SPLITS = ("train", "valid", "test")
TEXT_PROBLEMS = ("no_text", "bad_text", "not_utf8")


@dataclass(frozen=True)
class Speech:
    """The utterances of a source.

    Attributes:
        utterances: All of them, without their texts; one that can't be used has a problem.
        layout: How the source is laid out.
        note: What was changed to read it, for the user; None if nothing was.
    """

    utterances: list[Utterance]
    layout: str
    note: str | None = None


def find_speech(path: str, splits: Sequence[str] = ()) -> Speech | None:
    """Find the utterances of a folder in one of the layouts of corpora.

    Args:
        path: Folder or URI.
        splits: The splits to read; by default those of `SPLITS` that are there.

    Returns:
        None where no layout has any of the splits.

    Raises:
        UserError: A manifest or table can't be read.
    """
    folder = storage.absolute(path)
    source = SourceFolder(folder, needs_text=False)
    for name, layout in LAYOUTS.items():
        uris = [(uri, split) for split in splits or SPLITS for part in find_split(name, source, split) for uri in part]
        if uris and layout.looks_right(uris[0][0]):
            places = AudioPlaces([folder], ())
            read = ((uri, each) for uri, split in uris for each in layout.read(uri, split, source))
            utterances, note = unique_ids(
                ((uri, places.checked(without_text(encodable(each)))) for uri, each in read), folder
            )
            return Speech(with_sizes(utterances, source), name, note)
    return None


def without_text(row: Utterance) -> Utterance:
    """An utterance without its text, and without the problem that its text may be."""
    is_text = row.problem and row.problem[0] in TEXT_PROBLEMS and row.audio
    return replace(row, text=None, problem=None if is_text else row.problem)


def prepared_speech(corpus: str, splits: Sequence[str] = ()) -> Speech:
    """The utterances of a prepared corpus. Speakers and languages are in its shards, and are not read here.

    Raises:
        UserError: The corpus is damaged, or has no such split.
    """
    manifest = read_manifest(corpus)
    utterances = []
    for split in splits or manifest.rows_by_split:
        index = read_index(corpus, manifest, split)
        columns = (index.shard, index.row_group, index.row, index.num_samples)
        for name, shard, group, row, samples in zip(
            index.ids.to_pylist(), *(column.tolist() for column in columns), strict=True
        ):
            audio = PreparedCorpus(corpus).file(index.files[shard])
            entry = ContainerEntry("row", group, row)
            place = f"{audio}:{group}.{row}"
            utterances.append(Utterance(name, split, audio, None, place, duration=samples / SAMPLE_RATE, entry=entry))
    return Speech(utterances, "prepared")
