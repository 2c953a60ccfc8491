"""Does agreement of two depths predict errors? Keep share and WER of what is kept, at several thresholds.

    python examples/agreement.py ./labels --data PATH/an4 --split test

LABELS is the folder of `foldray transcribe MODEL CORPUS --format parquet --agree 1`, and the corpus has the true texts.
"""

import argparse
from pathlib import Path

from foldray.data.layouts import LAYOUTS, SourceFolder
from foldray.data.text import normalise
from foldray.results.alignment import align_words
from foldray.storage.parquet import open_local

THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
Scored = tuple[float, int, int]
"""Disagreement of an utterance, its word errors, its words."""


def scored(labels: Path, data: str, split: str) -> list[Scored]:
    """The disagreement and the errors of every transcript that has a true text."""
    source = SourceFolder(data)
    uris = LAYOUTS["jsonl"].find(source, split)
    rows = (each for uri in uris for each in LAYOUTS["jsonl"].read(uri, split, source))
    texts = {each.id: normalise(each.text or "", "unicode") for each in rows}
    found: list[Scored] = []
    for file in sorted(labels.glob("shards/*.parquet")):
        for row in open_local(file).read(["id", "text", "disagreement", "error"]).to_pylist():
            reference = texts.get(row["id"])
            if reference and not row["error"]:
                steps = align_words(reference, normalise(row["text"], "unicode"))
                missing = 2.0 if row["disagreement"] is None else row["disagreement"]
                found.append((missing, len(steps) - steps.count("C"), len(reference.split())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    rows = scored(given.labels, given.data, given.split)
    print("| --agree | kept | WER of what is kept | WER of what is left out |\n|---:|---:|---:|---:|")
    for most in THRESHOLDS:
        kept = [row for row in rows if row[0] <= most]
        left = [row for row in rows if row[0] > most]
        print(f"| {most:g} | {len(kept) / len(rows):.0%} | {wer(kept)} | {wer(left)} |")
    print(f"| all | 100% | {wer(rows)} | |")


def wer(rows: list[Scored]) -> str:
    """Word errors of utterances per word."""
    words = sum(row[2] for row in rows)
    return f"{sum(row[1] for row in rows) / words:.1%}" if words else "none"


if __name__ == "__main__":
    main()
