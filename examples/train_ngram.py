"""Train an n-gram on the texts of a prepared corpus, for `foldray evaluate MODEL --lm FILE`.

    pip install 'foldray[lm]'
    python examples/train_ngram.py foldray-store/corpora/an4-8de0ea5764 an4.arpa

The texts are those that a model of the corpus learned: its split 'train', normalised. kaldingram smooths them by
Kneser-Ney with back-off, as SRILM's `-ukndiscount` does. An n-gram of more text is better: `kaldingram train` takes any
file with one sentence on each line.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # kaldingram shows a progress bar for each order

from kaldingram.train import NgramCounts

from foldray.data.manifest import read_manifest
from foldray.storage.layout import PreparedCorpus
from foldray.storage.parquet import read_footer, read_row_group


def read_texts(corpus: str, split: str) -> Iterator[str]:
    """Normalised texts of a split of a prepared corpus."""
    for shard in read_manifest(corpus).shards:
        if shard.split == split:
            uri = PreparedCorpus(corpus).file(shard.file)
            for number in range(read_footer(uri).num_row_groups):
                yield from read_row_group(uri, number, ["text"])["text"].to_pylist()


def train_ngram(texts: Iterable[str], order: int, file: Path) -> None:
    """Write an ARPA file with n-grams of words up to `order`, from 2 to 5."""
    counts = NgramCounts(order)
    for text in texts:
        counts.add_raw_counts_from_line(text)
    counts.cal_discounting_constants()
    counts.cal_f()
    counts.cal_bow()
    with file.open("w", encoding="utf-8") as arpa:
        counts.print_as_arpa(arpa)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a prepared corpus: a folder or s3://bucket/prefix")
    parser.add_argument("arpa", type=Path, help="the file to write")
    parser.add_argument("--order", type=int, default=3, choices=range(2, 6), help="words of the longest n-gram")
    given = parser.parse_args()
    train_ngram(read_texts(given.corpus, "train"), given.order, given.arpa)
    print(f"{given.arpa}: {given.arpa.stat().st_size:,} bytes")
