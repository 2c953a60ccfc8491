"""Corpora for tests: prepared without Ray, damaged, and their ids."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from foldray.config.corpus import CorpusSpec
from foldray.data import prepare as preparation
from foldray.data.corpora import find_corpus
from foldray.data.manifest import Manifest, read_index


def prepare_serially(spec: CorpusSpec, root: Path) -> tuple[str, Manifest]:
    """`prepare` with its shard tasks run one after the other in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "_write_shards", _write_serially)
        return preparation.prepare(find_corpus(spec, str(root)), spec, str(root))


def _write_serially(
    tasks: list[Any], folder: str, _cpus: float, on_progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    summaries = []
    for task in tasks:
        summaries.append(preparation.write_shard(task, folder))
        on_progress(len(summaries), len(tasks))
    return summaries


def damage(corpus: Path) -> dict[str, str]:
    """Add one item of each kind to train.jsonl; returns the reason each should get ('' if it is good)."""
    tone = 0.3 * np.sin(np.arange(44_100) * 0.05).astype(np.float32)
    whole = io.BytesIO()
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000, format="FLAC")
    files = {
        "truncated": whole.getvalue()[: len(whole.getvalue()) // 2],
        "empty": b"",
        "noaudio": b"this is no audio at all",
        "silent": encode_wav(np.zeros(16_000)),
        "stereo": encode_wav(np.stack([tone, tone], 1), 44_100),
        "short": encode_wav(tone[:1000], 16_000),
        "long": encode_wav(np.tile(tone, 15), 16_000),
        "zero": encode_wav(np.zeros(0)),
        "nan": encode_wav(np.full(16_000, np.nan), 16_000, "FLOAT"),
        "textless": encode_wav(tone, 16_000),
        "unsayable": encode_wav(tone, 16_000),
    }
    rows = []
    for name, data in files.items():
        (corpus / f"{name}.bin").write_bytes(data)
        text = {"textless": "  ", "unsayable": "?! 12"}.get(name, "HELLO")
        rows.append({"id": name, "audio": f"{name}.bin", "text": text, "speaker": "damaged"})
    rows.append({"id": "missing", "audio": "nowhere.wav", "text": "HELLO"})
    rows.append({"id": "stereo", "audio": "stereo.bin", "text": "AGAIN"})
    with (corpus / "train.jsonl").open("a") as manifest:
        manifest.writelines(json.dumps(row) + "\n" for row in rows)
    return {
        "truncated": "truncated", "empty": "empty_file", "noaudio": "unreadable", "silent": "silent",
        "short": "too_short", "long": "too_long", "zero": "zero_length", "nan": "not_finite", "textless": "no_text",
        "unsayable": "no_known_characters", "missing": "missing_file", "stereo": "duplicate_id",
    }  # fmt: skip


def encode_wav(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format="WAV", subtype=subtype)
    return target.getvalue()


def ids_in(corpus: Path) -> list[str]:
    lines = [line for split in ("train", "test") for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
    return [json.loads(line)["id"] for line in lines]


def ids_out(folder: str, manifest: Manifest) -> list[str]:
    return [i for split in ("train", "valid", "test") for i in read_index(folder, manifest, split).ids.to_pylist()]
