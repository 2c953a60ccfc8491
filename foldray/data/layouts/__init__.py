"""Layouts of source corpora in folders. Metadata only: no audio is decoded here.

A layout finds the files or folders that make up a split, and reads each of them. All yield the same `Utterance`, so
nothing downstream depends on the layout.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from foldray.data.layouts.cuts import find_lhotse, read_lhotse
from foldray.data.layouts.kaldi import find_kaldi, read_kaldi
from foldray.data.layouts.manifests import find_commonvoice, find_jsonl, read_commonvoice, read_jsonl
from foldray.data.layouts.parquet import find_parquet, read_parquet
from foldray.data.layouts.source_folder import SourceFolder
from foldray.data.layouts.tars import find_webdataset, read_webdataset
from foldray.data.layouts.trees import (
    find_folder,
    find_librispeech,
    holds_audio,
    holds_transcripts,
    read_folder,
    read_librispeech,
)
from foldray.data.utterance import Utterance

__all__ = ["LAYOUTS", "Layout", "SourceFolder"]


class Layout(NamedTuple):
    """One layout.

    Attributes:
        find: Returns the URIs that make up the split or source of a name, [] if there are none.
        read: Yields the utterances of one of these URIs, for a split.
        example: What a split looks like, for messages.
        looks_right: Whether a URI contains what the layout reads, where its name alone does not tell.
    """

    find: Callable[[SourceFolder, str], list[str]]
    read: Callable[[str, str, SourceFolder], Iterator[Utterance]]
    example: str
    looks_right: Callable[[str], bool] = lambda uri: True


LAYOUTS: dict[str, Layout] = {
    "jsonl": Layout(find_jsonl, read_jsonl, "train.jsonl, train_manifest.json or train/*.jsonl"),
    "lhotse": Layout(find_lhotse, read_lhotse, "cuts_train.jsonl.gz"),
    "kaldi": Layout(find_kaldi, read_kaldi, "train/wav.scp and train/text"),
    "commonvoice": Layout(find_commonvoice, read_commonvoice, "train.tsv and clips/"),
    "parquet": Layout(find_parquet, read_parquet, "train-*.parquet, in data/ or not"),
    "webdataset": Layout(find_webdataset, read_webdataset, "train-*.tar or train/*.tar"),
    "librispeech": Layout(
        find_librispeech, read_librispeech, "train-clean-100/SPEAKER/CHAPTER/", looks_right=holds_transcripts
    ),
    "folder": Layout(
        find_folder, read_folder, "train/ with a .txt file next to each audio file", looks_right=holds_audio
    ),
}
"""Every layout by its name in `corpus.layout`, in the order `auto` tries them: the most explicit ones first."""
