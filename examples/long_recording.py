"""Transcribe a long recording, made of the test utterances of a prepared corpus, and the same utterances one by one.

    python examples/long_recording.py MODEL PREPARED_CORPUS --minutes 60

Prints the WER of both, the peak memory, and how far words reach over the seams between utterances.
"""

import argparse
import itertools
import resource
from collections.abc import Iterator

import jiwer
import numpy as np

from foldray.data.audio import decode_flac
from foldray.data.manifest import read_index, read_manifest
from foldray.data.reader import Row, RowReader
from foldray.data.recording import Samples
from foldray.evaluation.provenance import find_model
from foldray.transcription.files import Recording, transcribe
from foldray.transcription.recogniser import Recogniser
from foldray.transcription.transcript import Transcript


def rows_of(corpus: str, split: str) -> list[Row]:
    """The utterances of a prepared split."""
    index = read_index(corpus, read_manifest(corpus), split)
    reader = RowReader(index)
    return [reader(i) for i in range(len(index.num_samples))]


def joined(rows: list[Row]) -> Iterator[Samples]:
    """The samples of utterances, one after the other."""
    for row in rows:
        yield decode_flac(row["audio"])


def transcribed(recogniser: Recogniser, recordings: list[Recording], chunk: float | None) -> list[Transcript]:
    """The transcripts of recordings that can all be used."""
    found = [result for _, result in transcribe(recogniser, recordings, chunk_seconds=chunk, words=True)]
    return [each for each in found if isinstance(each, Transcript)]


def seam_errors(rows: list[Row], whole: Transcript) -> list[float]:
    """Seconds that each word reaches over the start or end of the utterance that its middle is in."""
    ends = np.cumsum([len(decode_flac(row["audio"])) / 16_000 for row in rows])
    starts = np.concatenate([[0.0], ends[:-1]])
    own = [int(np.searchsorted(ends, (word.start + word.end) / 2)) for word in whole.words]
    return [max(0.0, starts[i] - w.start, w.end - ends[i]) for i, w in zip(own, whole.words, strict=True)]


def main() -> None:
    """Read the arguments and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--chunk", type=float)
    arguments = parser.parse_args()
    recogniser = Recogniser(find_model(arguments.model, "./foldray-store").uri)
    once = rows_of(arguments.corpus, arguments.split)
    clips = [Recording(row["id"], lambda row=row: [decode_flac(row["audio"])]) for row in once]
    parts = {
        row["id"]: found.text for row, found in zip(once, transcribed(recogniser, clips, arguments.chunk), strict=True)
    }
    rows: list[Row] = []
    seconds = 0.0
    for row in itertools.cycle(once):
        if seconds >= 60 * arguments.minutes:
            break
        rows.append(row)
        seconds += len(decode_flac(row["audio"])) / 16_000
    (whole,) = transcribed(recogniser, [Recording("long", lambda: joined(rows))], arguments.chunk)
    reference = " ".join(row["text"] for row in rows)
    over = sorted(seam_errors(rows, whole))
    print(f"{len(rows)} utterances, {whole.seconds / 60:.1f} minutes, depth {whole.depth}")
    print(f"WER of the parts {jiwer.wer(reference, ' '.join(parts[row['id']] for row in rows)):.2%}")
    print(f"WER of the whole {jiwer.wer(reference, whole.text):.2%}")
    print(f"words reach over seams by {over[-1]:.3f} s at most, 99 % by {over[len(over) * 99 // 100]:.3f} s at most")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
