"""Made-up result rows and hypotheses."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from foldray.results.alignment import align_words
from foldray.results.rows import SCHEMA_VERSION, Hypothesis, ResultRow

SPOKEN = "zero one two three four five six seven eight nine ten eleven twelve yes no start stop help erase repeat"
WORDS = SPOKEN.split(" ")


def row(**fields: Any) -> ResultRow:
    """A result row with the given fields."""
    plain = {
        "schema_version": SCHEMA_VERSION, "trained": True, "decoding": "ctc",
        "run_id": "run-0", "kind": "fold", "recipe": "an4", "family": "parakeet", "path": "0 0 1 1", "private": "none",
        "alpha": 0.5, "beta": 0.3, "num_layers": 2, "depth": 4, "order": "in_place", "corpus": "an4-1", "split": "test",
        "language": "en", "wer": 0.1, "cer": 0.05, "num_utterances": 10, "num_words": 100, "substitutions": 6,
        "deletions": 2, "insertions": 2, "params_stored": 1000, "params_unrolled": 2000, "bytes_stored": 4000,
        "macs_per_audio_second": 1e8, "rtfx": 50.0, "peak_rss_bytes": 2**28, "train_seconds": 60.0,
        "train_audio_seconds": 3600.0, "step": 100, "seed": 0, "device": "cpu", "precision": "float32",
        "created": "2026-01-01T00:00:00.000+00:00", "versions": "{}", "git_commit": "", "spec_hash": "0",
    }  # fmt: skip
    return cast(ResultRow, {**plain, **fields})


def at(minutes: int) -> str:
    """A time in the format of `created`."""
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)).isoformat(timespec="milliseconds")


def hypothesis(reference: str, heard: str, **fields: Any) -> Hypothesis:
    """A decoder's output for a reference."""
    steps = align_words(reference, heard)
    plain = {
        "run_id": "run-0", "step": 100, "depth": 4, "corpus": "an4-1", "split": "test", "decoding": "ctc",
        "id": "u0", "speaker": "",
        "reference": reference, "hypothesis": heard,
        "num_words": len(reference.split()), "substitutions": steps.count("S"),
        "deletions": steps.count("D"), "insertions": steps.count("I"), "alignment": steps,
        "created": "2026-01-01T00:00:00.000+00:00",
    }  # fmt: skip
    return cast(Hypothesis, {**plain, **fields})


def misheard(reference: str, rate: float, rng: random.Random) -> str:
    """A text with substitutions, deletions and insertions at a rate."""
    heard: list[str] = []
    for word in reference.split():
        drawn = rng.random()
        if drawn < rate / 3:
            heard.append(rng.choice(WORDS))
        elif drawn < 2 * rate / 3:
            continue
        elif drawn < rate:
            heard += [word, rng.choice(WORDS)]
        else:
            heard.append(word)
    return " ".join(heard)


def evaluation(
    run_id: str, references: list[str], rate: float, seed: int = 0, **fields: Any
) -> tuple[ResultRow, list[Hypothesis]]:
    """A row and its hypotheses with errors at a rate."""
    rng = random.Random(f"{seed} {run_id} {fields.get('depth', 4)}")
    shared = {
        key: value
        for key, value in fields.items()
        if key in ("depth", "corpus", "split", "decoding", "created", "step")
    }
    heard = [
        hypothesis(text, misheard(text, rate, rng), run_id=run_id, id=f"u{i:04d}", **shared)
        for i, text in enumerate(references)
    ]
    counts = {kind: sum(h[kind] for h in heard) for kind in ("substitutions", "deletions", "insertions", "num_words")}
    errors = counts["substitutions"] + counts["deletions"] + counts["insertions"]
    return row(run_id=run_id, wer=errors / counts["num_words"], num_utterances=len(heard), **counts, **fields), heard
