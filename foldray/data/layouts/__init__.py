"""Layouts: how corpora lie in folders. Metadata only; no audio is decoded here, and nothing but storage is asked.

A layout finds the files or folders that make up a split, and reads each of them. All give the same
utterances, so that nothing after them knows which it was.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from foldray.data.layouts.cuts import find_lhotse, read_lhotse
from foldray.data.layouts.kaldi import find_kaldi, read_kaldi
from foldray.data.layouts.manifests import find_commonvoice, find_jsonl, read_commonvoice, read_jsonl
from foldray.data.layouts.parquet import find_parquet, read_parquet
from foldray.data.layouts.place import Place
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

__all__ = ["LAYOUTS", "Layout", "Place"]


class Layout(NamedTuple):
    """find: URIs that make up the split or source of a name, [] for none; read: the utterances of one of them, for
    a split; wants: what a split is, in words; looks_right: whether a URI found holds what the layout reads, where its
    name alone does not say."""

    find: Callable[[Place, str], list[str]]
    read: Callable[[str, str, Place], Iterator[Utterance]]
    wants: str
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
    "folder": Layout(find_folder, read_folder, "train/ with a .txt beside each audio file", looks_right=holds_audio),
}
"""What reads each layout, in the order they are tried: those that say more of themselves come first."""
