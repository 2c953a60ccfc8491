"""What the Open ASR Leaderboard scores: a JSONL file for each depth, and a table of RTFx and parameters.

Its scorer (github.com/huggingface/open_asr_leaderboard, `normalizer/eval_utils.py`) reads every `*.jsonl` of a folder.
It takes the model and the test set from a file's name, normalises `text` and `pred_text` itself, and computes WER from
them and RTFx from `duration` and `time`. So the texts here are as they were written.
"""

import csv
import io
import json
import re
from collections.abc import Sequence

from foldray import storage
from foldray.evaluation.score import DepthScore, Transcript
from foldray.results.rows import ResultRow

TABLE_FILE = "leaderboard.csv"
COLUMNS = (
    "model", "RTFx", "Size (B)", "depth", "parameters_stored", "parameters_unshared", "audio_seconds",
    "decoding_seconds", "device", "file",
)  # fmt: skip
"""Of the table. The first three are columns of the leaderboard, whose sizes are billions of parameters."""


def write_leaderboard(folder: str, model: str, rows: Sequence[ResultRow], scores: Sequence[DepthScore]) -> list[str]:
    """Write one JSONL file for each depth, and `leaderboard.csv`; returns their URIs, the table last.

    Args:
        folder: Folder or URI; files of the same names are replaced.
        model: OWNER/NAME. The name of a depth is OWNER/NAME-depth-N, since the leaderboard has one row for each model.
        rows: The result rows of one evaluation.
        scores: Its scores, in the same order.
    """
    written, table = [], [list(COLUMNS)]
    for row, score in zip(rows, scores, strict=True):
        name = f"{model}-depth-{row['depth']}"
        file = _file_name(model, row)
        written.append(storage.join(folder, file))
        storage.write_bytes(written[-1], "".join(map(_line, score.transcripts)).encode())
        table.append([name, *_measured(row, score.transcripts), file])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table)
    written.append(storage.join(folder, TABLE_FILE))
    storage.write_bytes(written[-1], buffer.getvalue().encode())
    return written


def _line(transcript: Transcript) -> str:
    values = {
        "audio_filepath": transcript.id,
        "duration": transcript.seconds,
        "time": transcript.decode_seconds,
        "text": transcript.reference,
        "pred_text": transcript.hypothesis,
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def _measured(row: ResultRow, transcripts: Sequence[Transcript]) -> list[str]:
    """Cells of the table between the model and its file."""
    audio, decoding = sum(t.seconds for t in transcripts), sum(t.decode_seconds for t in transcripts)
    stored, unshared = row["params_stored"], row["params_unrolled"]
    sizes = [f"{stored / 1e9:.6f}", str(row["depth"]), str(stored), str(unshared)]
    return [f"{audio / decoding:.2f}", *sizes, f"{audio:.3f}", f"{decoding:.3f}", row["device"]]


def _file_name(model: str, row: ResultRow) -> str:
    """MODEL_<owner-name>-depth-<N>_DATASET_<corpus id>_<corpus>_<split>.jsonl, as the scorer splits it."""
    depth = f"-depth-{row['depth']}"
    corpus = row["corpus"].rpartition("-")[0] or row["corpus"]
    dataset = "_".join(map(_plain, (row["corpus"], corpus, row["split"])))
    return f"MODEL_{_plain(model, _MOST - len(depth))}{depth}_DATASET_{dataset}.jsonl"


_MOST = 80
"""Characters of each part of a file's name."""


def _plain(name: str, most: int = _MOST) -> str:
    """A part of a file's name; a hyphen stands for '/' and what else a name of a file should not have."""
    return re.sub(r"[^\w.-]", "-", name)[:most]
