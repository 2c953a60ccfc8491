"""Result rows as the hub's `.eval_results/*.yaml`, one file for each depth, test set and decoding."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from foldray.errors import UserError
from foldray.results.rows import ResultRow
from foldray.runtime.terminal import printable

EVAL_FOLDER = ".eval_results"
EVAL_PREFIX = "foldray-"
"""Begins the names of our files there: those of others are left alone."""


@dataclass(frozen=True)
class Benchmark:
    """A test set that is a benchmark on the hub: its dataset, and the id of the task in the dataset's `eval.yaml`."""

    dataset: str
    task: str


def parse_benchmarks(texts: Sequence[str]) -> dict[str, Benchmark]:
    """Parse `[SPLIT=]OWNER/NAME:TASK`, by split; "" stands for every split, `CORPUS/SPLIT` for that of one corpus.

    Raises UserError.
    """
    found: dict[str, Benchmark] = {}
    for text in texts:
        matched = re.fullmatch(r"(?:([^=]+)=)?([\w.-]+(?:/[\w.-]+)?):([\w.-]+)", text)
        if not matched:
            raise UserError("--benchmark", f"'{text}' is not [SPLIT=]OWNER/NAME:TASK, such as test=org/bench:default")
        if (split := matched[1] or "") in found:
            raise UserError("--benchmark", f"names two benchmarks for {split or 'every split'}; name one")
        found[split] = Benchmark(matched[2], matched[3])
    return found


def eval_files(rows: Sequence[ResultRow], page_url: str, benchmarks: Mapping[str, Benchmark]) -> dict[str, str]:
    """Describe rows as files of the hub, by their paths in the repository. Values are WER in percent.

    A row without a benchmark names its prepared corpus and its split, which no leaderboard of the hub lists.

    Args:
        rows: Result rows of one model.
        page_url: The model's page, the source of the results.
        benchmarks: Benchmarks by test set, as `parse_benchmarks` returns them.

    Raises:
        UserError: A benchmark is for a split without rows, or for those of several corpora.
    """
    for split in benchmarks:
        corpora = {row["corpus"] for row in rows if split in ("", *_names_of(row))}
        if len(corpora) != 1 or (not split and len({row["split"] for row in rows}) > 1):
            had = ", ".join(sorted({f"{row['corpus']} {row['split']}" for row in rows})) or "none"
            fix = "; write CORPUS/SPLIT=… for that of one corpus" if len(corpora) > 1 else ""
            raise UserError("--benchmark", f"must name the split of one test set; those with result rows: {had}{fix}")
    files: dict[str, str] = {}
    for row in rows:
        named = (benchmarks[name] for name in (*_names_of(row), "") if name in benchmarks)
        place = next(named, Benchmark(row["corpus"], row["split"]))
        entry = EvalResultEntry(
            dataset_id=printable(place.dataset),
            task_id=printable(place.task),
            value=round(100 * row["wer"], 2),
            date=row["created"],
            source_url=page_url,
            source_name="foldray",
            notes=printable(_notes(row)),
        )
        files[f"{EVAL_FOLDER}/{_file_name(row)}"] = yaml_dump(eval_result_entries_to_yaml([entry]))
    return files


def _names_of(row: ResultRow) -> tuple[str, str]:
    """What `--benchmark` may call a row's test set, the more exact name first."""
    return f"{row['corpus']}/{row['split']}", row["split"]


def _notes(row: ResultRow) -> str:
    """What tells the rows of one benchmark apart."""
    trained = "" if row["trained"] else " (untrained)"
    cer, stored = f"CER {100 * row['cer']:.2f} %", f"{row['params_stored']:,} parameters stored"
    return f"WER in percent at depth {row['depth']}{trained}, {row['decoding']} decoding; {cer}, {stored}"


def _file_name(row: ResultRow) -> str:
    """A plain file name; whatever a name of a corpus should not bring into it becomes a hyphen."""
    whole = [row["corpus"], row["split"], row["decoding"]]
    named = [re.sub(r"[^A-Za-z0-9._-]+", "-", part[:most]) for part, most in zip(whole, (80, 40, 20), strict=True)]
    if named != whole:  # two of these may be one after the cut
        named.append(hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:8])
    return f"{EVAL_PREFIX}{'-'.join(named)}-depth-{row['depth']}.yaml"
