"""Transcribing corpora: every id once with the text that the file alone gets, killed and resumed or not."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foldray import FoldPlan
from foldray.config.corpus import CorpusSpec
from foldray.data.manifest import Manifest, read_index
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.models.save_load import save_model
from foldray.stages.transcribe_corpus import describe
from foldray.storage.layout import TranscriptsFolder
from foldray.transcription import corpus_job, corpus_plan
from foldray.transcription.agreement import disagreement
from foldray.transcription.corpus_job import Progress
from foldray.transcription.corpus_plan import plan_shards
from foldray.transcription.corpus_rows import reason_of
from tests.support.corpora import damage, encode_wav, ids_in, ids_out, prepare_serially
from tests.support.tiny import TOKENIZER, folded
from tests.support.transcripts import rows_of, texts_of, transcribe_serially


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("fold") / "model"
    save_model(folded("wav2vec2-stable", FoldPlan(2, (2, 4))).eval(), folder, TOKENIZER)
    return str(folder)


@pytest.fixture(autouse=True)
def _short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_plan, "LEAST_SHARD_SECONDS", 20.0)


@pytest.mark.main
def test_every_utterance_has_its_text_or_its_error(model: str, own_corpus: Path, tmp_path: Path) -> None:
    reasons = damage(own_corpus)
    manifest = transcribe_serially(model, [str(own_corpus)], tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == ids_in(own_corpus)
    assert len(manifest.shards) > 3
    good = [row for row in rows if not row["error"]]
    assert [row["text"] for row in good] == texts_of(model, [row["audio"] for row in good])
    assert any(row["text"] for row in good)
    assert all(" ".join(word["word"] for word in row["words"]) == row["text"] for row in good)
    # What only texts, limits of training and clipping rule out has a transcript.
    audio = {"truncated", "empty", "noaudio", "silent", "zero", "nan", "missing"}
    errors = {row["id"]: row["error"] for row in rows if row["error"]}
    expected = {name: reason for name, reason in reasons.items() if name in audio} | {"stereo": "duplicate_id"}
    assert errors == expected
    assert manifest.utterances == len(rows)
    assert sum(manifest.errors.values()) == len(errors)


def test_what_depths_agree_on_is_a_corpus(model: str, spoken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = transcribe_serially(model, [str(spoken)], out, agree=0.9)
    rows = {row["id"]: row for row in rows_of(out)}
    kept = [json.loads(line) for line in (out / "corpus/train.jsonl").read_text().splitlines()]
    assert 0 < len(kept) == manifest.kept < len(rows)
    assert manifest.kept + sum(manifest.left_out.values()) == len(rows)
    agreed = {i for i, row in rows.items() if row["disagreement"] is not None and row["disagreement"] <= 0.9}
    assert {row["id"] for row in kept} == agreed
    shallow = texts_of(model, [row["audio"] for row in rows.values()], 2)
    assert [row["others"][0]["text"] for row in rows.values()] == shallow
    spec = CorpusSpec(path=str(out / "corpus"), splits=("train",), frame_seconds=0.001, max_quarantine=0)
    folder, prepared = prepare_serially(spec, tmp_path / "store")
    assert sorted(read_index(folder, prepared, "train").ids.to_pylist()) == sorted(agreed)


@pytest.mark.main
def test_a_prepared_corpus_gives_clips(model: str, prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = transcribe_serially(model, [prepared[0]], out, agree=1.0)
    rows = rows_of(out)
    assert sorted(row["id"] for row in rows) == sorted(ids_out(*prepared))
    assert all(row["speaker"] and row["split"] for row in rows)
    kept = [json.loads(line) for line in (out / "corpus/train.jsonl").read_text().splitlines()]
    assert 0 < len(kept) == manifest.kept
    clips = [str(out / "corpus" / row["audio"]) for row in kept]
    assert texts_of(model, clips) == [row["text"] for row in kept]
    chosen = transcribe_serially(model, [prepared[0]], tmp_path / "test", splits=["test"])
    assert chosen.utterances == prepared[1].rows_by_split["test"]


def test_a_killed_job_resumes_with_the_next_shard(
    model: str, own_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transcribe_serially(model, [str(own_corpus)], tmp_path / "whole", agree=0.9)
    out, real, written = tmp_path / "cut", corpus_job.transcribe_shard, []

    def dies_at_the_third(load: object, folder: TranscriptsFolder, number: int, *rest: object) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(folder.shard(number))
        return real(load, folder, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus_job, "transcribe_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        transcribe_serially(model, [str(own_corpus)], out, agree=0.9)
    monkeypatch.undo()
    assert not (out / "manifest.json").exists()
    assert not (out / "corpus").exists()
    stamps = [Path(file).stat().st_mtime_ns for file in written]
    (own_corpus / "test.jsonl").write_text("")  # the plan holds what was there
    resumed = transcribe_serially(model, [str(own_corpus)], out, agree=0.9)
    assert resumed.model_dump(exclude={"settings"}) == whole.model_dump(exclude={"settings"})
    assert [Path(file).stat().st_mtime_ns for file in written] == stamps
    assert (out / "corpus/train.jsonl").read_bytes() == (tmp_path / "whole/corpus/train.jsonl").read_bytes()
    assert transcribe_serially(model, [str(own_corpus)], out, agree=0.9) == resumed


def test_a_shard_is_written_once_and_a_damaged_one_again(model: str, spoken: Path, tmp_path: Path) -> None:
    whole = transcribe_serially(model, [str(spoken)], tmp_path / "out")
    first, second = (tmp_path / f"out/shards/part-0000{i}.parquet" for i in range(2))
    good = second.read_bytes()
    second.write_bytes(good[: len(good) // 2])
    (tmp_path / "out/shards/part-00000.jsonl").unlink()
    (tmp_path / "out/manifest.json").unlink()
    stamp = first.stat().st_mtime_ns
    assert transcribe_serially(model, [str(spoken)], tmp_path / "out") == whole
    assert (first.stat().st_mtime_ns, second.read_bytes()) == (stamp, good)


def test_a_folder_keeps_to_its_settings(model: str, spoken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    transcribe_serially(model, [str(spoken / "audio")], out)
    for options, field in (
        ({"depth": 2}, "depth=4"),
        ({"language": "de"}, "language="),
        ({"agree": 0.5}, "agree=None"),
    ):
        with pytest.raises(UserError, match=rf"--out: .* was begun with {field}.*; name another folder"):
            transcribe_serially(model, [str(spoken / "audio")], out, **options)
    inside = spoken / "audio" / "out"
    with pytest.raises(UserError, match="whose audio is read; name a folder elsewhere"):
        transcribe_serially(model, [str(spoken / "audio")], inside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agree": 2.0}, "--agree: must be a word error rate from 0 to 1"),
        ({"agree_depths": [2, 4]}, "--agree-depths: has no effect without --agree"),
        ({"agree": 0.1, "agree_depths": [4]}, "--agree-depths: name a shallow and a deep depth"),
        ({"agree": 0.1, "agree_depths": [1, 4]}, "--agree-depths: .*trained: 2, 4"),
        ({"depth": 1}, "--depth: .*trained: 2, 4"),
        ({"depth": 0}, "--depth: .*trained: 2, 4"),
        ({"splits": ["nowhere"]}, "--split: .* has no nowhere"),
        ({"chunk_seconds": 1.0}, "--chunk: use 2 to 120 seconds"),
    ],
)
def test_wrong_options_are_one_line(
    options: dict[str, object], message: str, model: str, spoken: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        transcribe_serially(model, [str(spoken)], tmp_path / "out", **options)
    assert not (tmp_path / "out/plan.parquet").exists()


def test_the_time_left_counts_what_this_start_has_done() -> None:
    assert describe(Progress(80, 90, 0, 0.0), 5.0) == ""
    assert describe(Progress(81, 90, 1, 0.5), 120.0) == "15 audio hours an hour, 18:00 left"
    assert describe(Progress(30, 31, 30, 1.0), 7_191.0) == "1 audio hours an hour, 4:00 left"


@pytest.mark.parametrize(
    ("resources", "use_gpu", "message"),
    [
        ({"CPU": 4.0}, True, "--use-gpu: no node of this Ray has a GPU; leave it out"),
        ({"CPU": 0.0}, False, "Ray: no node has a CPU for a worker; start one that has"),
    ],
)
def test_a_cluster_without_what_workers_need_is_one_line(
    resources: dict[str, float], use_gpu: bool, message: str
) -> None:
    ray: Any = SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": resources}])
    with pytest.raises(UserError) as refused:
        corpus_job._workers(ray, None, 8, use_gpu)
    assert str(refused.value).startswith(message)


def test_a_plan_is_a_function_of_the_listing() -> None:
    clips = [Utterance(f"{i}", "", f"/{i}.wav", None, f"/{i}.wav", duration=10 + i % 7) for i in range(3000)]
    shards = plan_shards(clips)
    assert plan_shards(clips) == shards
    assert [each for shard in shards for each in shard] == clips
    assert all(len(shard) <= 70 for shard in shards)
    again = plan_shards([*clips[:2], clips[0]])
    problems = [each.problem and each.problem[0] for shard in again for each in shard]
    assert problems == [None, None, "duplicate_id"]


def test_a_row_names_no_other_bucket(model: str, tmp_path: Path) -> None:
    """Also where its text is none, which is a problem of its own."""
    rows = [{"audio": "s3://other/a.wav", "text": ["x"]}, {"audio": "a.wav"}, {"audio": "a.wav", "id": "b"}]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a.wav").write_bytes(encode_wav(0.1 * np.sin(np.arange(16_000) * 0.05)))
    (tmp_path / "c/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for given in (tmp_path / "c", tmp_path / "c/train.jsonl"):
        transcribe_serially(model, [str(given)], tmp_path / f"out-{given.name}")
        assert [row["error"] for row in rows_of(tmp_path / f"out-{given.name}")] == ["unsafe_path", "", ""]


def test_disagreement_is_a_word_error_rate() -> None:
    assert disagreement("ONE TWO", "ONE TWO") == 0
    assert disagreement("one, two!", "One two") == 0
    assert disagreement("ONE", "ONE TWO THREE FOUR") == 0.75
    assert disagreement("", "ONE") == 1
    assert disagreement("ONE", " . ") is None
    assert reason_of("no_file does not exist") == ("missing_file", "no_file does not exist")
