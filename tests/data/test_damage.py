"""Two thousand utterances, eighteen kinds of damage: every reason counted exactly, and no exception for the user."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from foldray.config.corpus import CorpusSpec
from foldray.data.manifest import read_index, read_quarantine
from foldray.errors import UserError
from tests.support.corpora import prepare_serially

TOTAL, EACH = 2000, 6
SHORTENED = b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n" + b" " * 1000
TONE = (0.3 * np.sin(np.arange(12_000) * 0.05)).astype(np.float32)


def audio(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=kind, subtype=subtype)
    return target.getvalue()


def damaged_files() -> dict[str, tuple[bytes | None, str]]:
    """What each kind of damage leaves as the file (None: no file at all), and the reason it should get."""
    whole = audio(np.random.default_rng(0).normal(0, 0.1, 20_000), kind="FLAC")
    opus = audio(TONE, kind="OGG", subtype="OPUS")
    return {
        "cut FLAC": (whole[: len(whole) // 2], "truncated"),
        "cut WAV": (audio(TONE)[:9000], "truncated"),
        "no bytes": (b"", "empty_file"),
        "noise as bytes": (np.random.default_rng(1).bytes(5000), "unreadable"),
        "broken Opus": (opus[:60] + bytes(len(opus) - 60), "truncated"),
        "compressed SPHERE": (SHORTENED, "unreadable"),
        "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not_audio"),
        "a web page": (b"<!DOCTYPE html><html>not found</html>", "not_audio"),
        "silence": (audio(np.zeros(12_000)), "silent"),
        "no samples": (audio(np.zeros(0)), "zero_length"),
        "NaN": (audio(np.full(12_000, np.nan), subtype="FLOAT"), "not_finite"),
        "clipped": (audio(np.clip(40 * TONE, -1, 1)), "clipped"),
        "a click": (audio(TONE[:1000]), "too_short"),
        "a lecture": (audio(np.tile(TONE, 8)), "too_long"),
        "no file": (None, "missing_file"),
    }  # fmt: skip


def damaged_texts() -> dict[str, tuple[str | None, str]]:
    return {
        "blank": ("  ", "no_text"),
        "no field": (None, "no_text"),
        "numbers": ("42 ?!", "no_known_characters"),
        "too much": ("A LONG STORY IN NO TIME", "labels_longer_than_frames"),
    }


def rows_of(folder: Path) -> Iterator[tuple[dict[str, object], str | None]]:
    """Manifest rows with the reason each should get, None for the good ones."""
    (folder / "audio").mkdir(parents=True)
    for kind, (data, reason) in damaged_files().items():
        for number in range(EACH):
            name = f"audio/{kind.replace(' ', '-')}-{number}.wav"
            if data is not None:
                (folder / name).write_bytes(data)
            yield {"id": name, "audio": name, "text": "HELLO"}, reason
    (folder / "audio" / "good.wav").write_bytes(audio(TONE))
    for kind, (text, reason) in damaged_texts().items():
        for number in range(EACH):
            said = {} if text is None else {"text": text}
            yield {"id": f"{kind}-{number}", "audio": "audio/good.wav", **said}, reason
    for number in range(EACH):
        yield (
            {"id": f"beyond-{number}", "audio": "audio/good.wav", "text": "HI", "offset": 5, "duration": 0.5},
            "truncated",
        )
        yield {"id": f"folder-{number}", "audio": "audio", "text": "HELLO"}, "missing_file"
        yield {"id": "good-0000", "audio": "audio/good.wav", "text": "AGAIN"}, "duplicate_id"
    formats = [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("NIST", "PCM_16")]
    for number, (kind, subtype) in enumerate(formats):  # every format under one name: the content decides
        (folder / "audio" / f"any-{number}.wav").write_bytes(audio(TONE, kind=kind, subtype=subtype))
    for number in range(TOTAL - EACH * (len(damaged_files()) + len(damaged_texts()) + 3)):
        yield {"id": f"good-{number:04d}", "audio": f"audio/any-{number % 5}.wav", "text": "HELLO THERE"}, None


@pytest.mark.main
def test_every_reason_is_counted_and_nothing_is_lost(tmp_path: Path) -> None:
    """On Ray, with fewer utterances: test_pipeline.py."""
    folder = tmp_path / "damaged"
    rows = list(rows_of(folder))
    rows.sort(key=lambda row: row[1] is not None)  # the first of a duplicate id is the good one
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _ in rows))
    assert len(rows) == TOTAL
    assert len({reason for _, reason in rows} - {None}) == 15
    spec = CorpusSpec(path=str(folder), splits=("train",), max_seconds=5)
    prepared, manifest = prepare_serially(spec.model_copy(update={"max_quarantine": 0.2}), tmp_path / "store")
    reasons: dict[str, int] = {}
    for _, reason in rows:
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
    assert manifest.reasons == reasons
    assert (manifest.utterances_in, manifest.quarantined) == (TOTAL, sum(reasons.values()))
    quarantined = read_quarantine(prepared)
    kept = read_index(prepared, manifest, "train").ids.to_pylist()
    assert sorted(kept) == sorted(str(row["id"]) for row, reason in rows if reason is None)
    assert sorted((e["id"], e["reason"]) for e in quarantined) == sorted((str(r["id"]), e) for r, e in rows if e)
    assert all(entry["detail"] and entry["source"].startswith("train.jsonl:") for entry in quarantined)
    with pytest.raises(UserError, match=r"corpus\.max_quarantine"):
        prepare_serially(spec, tmp_path / "strict")
    assert list((tmp_path / "strict").rglob("shards/*.parquet")), "what was prepared stays"
