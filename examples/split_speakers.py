"""Split the training set of a JSON lines corpus in two by speaker, so that one half can label the other.

    python examples/split_speakers.py PATH/an4 -o ./halves

Writes `DIR/first` and `DIR/second`: each has every other speaker and the whole test set. Audio is not copied: set
`corpus.audio_places` to the folder of the original corpus. Every row of the corpus needs a speaker.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a manifest, with absolute paths of audio."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if lost := [row.get("id") or row["audio"] for row in rows if not row.get("speaker")]:
        raise SystemExit(f"{file}: {len(lost)} rows have no speaker, such as {lost[0]}; give every row one")
    return [{**row, "audio": str(file.parent.resolve() / row["audio"])} for row in rows]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a manifest."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Read the arguments, write both halves and print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    train, test = (read_lines(arguments.corpus / f"{split}.jsonl") for split in ("train", "test"))
    speakers = sorted({row["speaker"] for row in train})
    for name, own in (("first", set(speakers[::2])), ("second", set(speakers[1::2]))):
        rows = [row for row in train if row["speaker"] in own]
        write_lines(arguments.out / name / "train.jsonl", rows)
        write_lines(arguments.out / name / "test.jsonl", test)
        print(f"{arguments.out / name}: {len(rows)} utterances of {len(own)} speakers, {len(test)} to test on")


if __name__ == "__main__":
    main()
