"""Jobs on Ray and S3: workers and drivers are killed, and every id has one row."""

import os
from pathlib import Path

import pytest

from foldray import storage
from foldray.storage.layout import TranscriptsFolder
from tests.support.ray_head import RayHead
from tests.support.transcribe_kills import Job, check_once, transcribe_with_kills, write_corpus, write_tiny_model

pytest_plugins = ["tests.support.ray_head", "tests.support.s3_server"]
pytestmark = [pytest.mark.ray, pytest.mark.soak]


def test_workers_and_drivers_are_killed_and_every_id_is_there_once(
    running_head: RayHead, ray_head: dict[str, str], s3_store: str, tmp_path: Path
) -> None:
    corpus, out = storage.join(s3_store, "corpus"), storage.join(s3_store, "out")
    ids = write_corpus(corpus, 1500)
    around = {**os.environ, **ray_head}
    arguments = [write_tiny_model(tmp_path / "model"), corpus, "-o", out, "--agree", "1"]
    ended, killed = transcribe_with_kills(arguments, around, running_head, out, 2, tmp_path / "log")
    assert [each.split()[0] for each in killed] == ["worker", "driver"]
    assert ended["utterances"] == len(ids)
    check_once(out, ids)
    manifest = storage.read_json(TranscriptsFolder(out).manifest)
    assert sum(shard["rows"] for shard in manifest["shards"]) == len(ids)
    kept = storage.read_bytes(TranscriptsFolder(out).corpus_rows).splitlines()
    assert len(kept) == ended["kept"]
    assert Job(arguments, around, tmp_path / "log").finish() == ended
