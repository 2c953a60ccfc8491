"""Names that are read from files never lead out of their folder."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foldray import storage
from foldray.config.model import ModelSpec
from foldray.config.run_files import read_run_facts
from foldray.data.manifest import read_manifest
from foldray.errors import DamagedFileError, UserError
from foldray.evaluation.provenance import find_model, provenance, run_id_of, trained_by
from foldray.results.rows import SCHEMAS, read_files
from foldray.results.searches import read_records, read_searches
from foldray.stages.export import _exported
from foldray.storage.layout import PreparedCorpus, Run, SearchFolder, Store
from foldray.training.checkpoint import read_checkpoint
from foldray.training.run_folder import whole_checkpoints
from tests.support.rows import row

OUTSIDE = ["../../.bashrc", "..", ".", "", "/etc/passwd", "a/../../b", "a//b", "a\\..\\b", "a\0b"]
CHECKPOINT = "checkpoints/step-00000001-0001-0001"


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_must_be_inside_its_folder(name: str) -> None:
    store = Store("/store")
    inside = (store.run, store.corpus, store.search, Run("/run").model.file, PreparedCorpus("/corpus").file)
    for place in inside:
        with pytest.raises(UserError, match="is not the name of anything in it"):
            place(name)


@pytest.mark.parametrize("name", ["../x", "a/../../b"])
def test_a_trial_must_be_inside_its_search(name: str) -> None:
    for uri in ("/search", "s3://bucket/search?region=us-east-1"):
        with pytest.raises(UserError, match=r"is not the name"):
            SearchFolder(uri).trial(name)
        with pytest.raises(UserError, match=r"is not the name"):
            SearchFolder(uri).claim("0001-0000", name)


@pytest.mark.parametrize(
    ("name", "joined"), [("a b.json", "/x/a b.json"), ("..a", "/x/..a"), ("shards/a.parquet", "/x/shards/a.parquet")]
)
def test_ordinary_names_are_kept(name: str, joined: str) -> None:
    assert storage.inside("/x", name) == joined


@pytest.mark.parametrize("name", ["../../.bashrc", "/tmp/x", "sub/x", ".."])
def test_a_checkpoint_writes_only_its_own_files(name: str, tmp_path: Path) -> None:
    folder = tmp_path / CHECKPOINT
    _write(folder / "manifest.json", {name: {"bytes": 1, "sha256": "0"}})
    problem = r"manifest\.json: names .+, which is not a file of this checkpoint; do not trust this run"
    with pytest.raises(UserError, match=problem):
        whole_checkpoints(str(tmp_path))
    with pytest.raises(UserError, match=problem):
        read_checkpoint(str(folder))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": {"bytes": "x"}}', "[" * 100_000, "", "\0"])
def test_a_damaged_manifest_of_a_checkpoint_is_not_whole(content: str, tmp_path: Path) -> None:
    _write(tmp_path / CHECKPOINT / "manifest.json", content)
    assert whole_checkpoints(str(tmp_path)) == []


def _corpus(**shard: object) -> dict[str, Any]:
    described = {"file": "shards/a.parquet", "split": "train", "rows": 1, "seconds": 1, "bytes": 1, "sha256": "0"}
    counts = {"utterances_in": 1, "utterances_out": 1, "quarantined": 0, "reasons": {}, "hours": 1.0}
    names = {"corpus_id": "a", "source": "/a", "layout": "jsonl", "vocabulary": ["<pad>"]}
    return {**names, **counts, "shards": [{**described, **shard}]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_corpus(file="../../x"), r"shards\.0\.file: must be the path of a file in the corpus folder"),
        (_corpus(rows="many"), r"shards\.0\.rows: input should be a valid integer.*"),
        ([], "content: input should be a valid dictionary.*"),
        ("{", "not valid JSON: .*"),
    ],
)
def test_a_damaged_manifest_of_a_corpus_names_the_field(content: object, problem: str, tmp_path: Path) -> None:
    _write(tmp_path / "manifest.json", content)
    with pytest.raises(DamagedFileError, match=rf"manifest\.json: is damaged \({problem}\)"):
        read_manifest(str(tmp_path))


def test_the_corpus_of_a_run_must_be_in_its_store(tmp_path: Path) -> None:
    facts = {"corpus": "/a", "corpus_id": "../../a", "spec_hash": "", "created": "", "versions": {}, "git_commit": ""}
    _write(tmp_path / "run.json", facts)
    with pytest.raises(UserError, match=r"corpora: '\.\./\.\./a' is not the name of anything in it"):
        Store(str(tmp_path)).corpus(read_run_facts(str(tmp_path)).corpus_id)


def test_an_export_cannot_name_a_run_outside_its_store(tmp_path: Path) -> None:
    numbers = {"alpha": 0.0, "beta": 0.0, "train_seconds": 0.0, "train_audio_seconds": 0.0, "step": 1, "seed": 0}
    texts = dict.fromkeys(("recipe", "versions", "git_commit", "spec_hash", "format"), "")
    _write(tmp_path / "model/export.json", {**numbers, **texts, "depths": [2], "run_id": "../../x"})
    _write(tmp_path / "model/fold.json", {})
    found = find_model(str(tmp_path / "model"), str(tmp_path / "store"))
    for read in (run_id_of, trained_by):
        with pytest.raises(DamagedFileError, match=r"export\.json: is damaged \(run_id: '\.\./\.\./x' is not the id"):
            read(found)


@pytest.mark.parametrize("versions", ["x", "[]", '{"torch": []}'])
def test_the_versions_of_an_export_are_texts(versions: str, tmp_path: Path) -> None:
    numbers = {"alpha": 0.0, "beta": 0.0, "train_seconds": 0.0, "train_audio_seconds": 0.0, "step": 1, "seed": 0}
    texts = dict.fromkeys(("recipe", "git_commit", "spec_hash", "format"), "")
    record = {**numbers, **texts, "depths": [2], "run_id": "run", "versions": versions}
    _write(tmp_path / "model/export.json", record)
    _write(tmp_path / "model/fold.json", {})
    with pytest.raises(DamagedFileError, match=r"export\.json: is damaged \("):
        provenance(find_model(str(tmp_path / "model"), str(tmp_path / "store")))


@pytest.mark.parametrize("checkpoint", ["run:../..", "run:", "run:/etc", "run:a/b", "run:.."])
def test_a_checkpoint_of_a_run_is_named_by_its_id(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="must be run: and the id of a run in the same store"):
        ModelSpec(family="wav2vec2", checkpoint=checkpoint)


def test_a_trial_names_a_run_of_its_store(tmp_path: Path) -> None:
    record = {"number": 0, "kind": "trial", "run_id": "../../x", "config": {}, "overrides": []}
    _write(tmp_path / "searches/s/trials/trial-0000.json", record)
    with pytest.raises(UserError, match=r"trial-0000\.json: .+ is not the id of a run"):
        read_records(str(tmp_path / "searches/s"))


@pytest.mark.parametrize("content", ["[]", '{"spec": {"search": null}}', '{"spec": 1}', '{"spec": {"search": {}}}'])
def test_a_damaged_search_is_named(content: str, tmp_path: Path) -> None:
    _write(tmp_path / "searches/s/search.json", content)
    with pytest.raises(UserError, match=r"search\.json: is damaged \(.+\); remove the search's folder"):
        read_searches(str(tmp_path))


def test_result_rows_name_a_run_of_their_store(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{**row(), "run_id": "../../x"}], SCHEMAS["results"]), file)
    with pytest.raises(
        UserError, match=r"a\.parquet: can't be read as results \('\.\./\.\./x' is not the id of a run\)"
    ):
        read_files("results", [file])


def test_the_record_of_an_export_is_an_object(tmp_path: Path) -> None:
    _write(tmp_path / "export.json", [])
    with pytest.raises(DamagedFileError, match=r"export\.json: is damaged \(content: "):
        _exported(str(tmp_path))
