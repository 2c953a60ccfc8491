"""The layout of a store: URIs of runs, corpora and searches, computed and parsed; damaged JSON by name."""

import ast
from pathlib import Path

import pytest

from foldray import storage
from foldray.config.run_files import read_run_facts
from foldray.errors import DamagedFileError
from foldray.storage import layout
from foldray.storage.layout import CheckpointFolder, PreparedCorpus, Run, SearchFolder, Store, parse_attempt

ROOTS = ("/data/my store", "s3://bucket", "s3://bucket/a/store", "s3://bucket/store?region=eu-west-1")


@pytest.mark.parametrize("root", ROOTS)
def test_the_uris_of_a_run_lead_back_to_its_store(root: str) -> None:
    store = Store(root)
    run = store.run("an4-1a2b3c4d5e")
    assert run.store == store
    assert run.run_id == "an4-1a2b3c4d5e"
    checkpoint = run.checkpoint(40, "0002-0001")
    for uri in (run.uri, run.model.uri, checkpoint.uri):
        assert Run.owning(uri) == run
    assert [CheckpointFolder(uri).step for uri in (checkpoint.uri, run.model.uri, run.uri)] == [40, None, None]


@pytest.mark.parametrize("root", ROOTS)
def test_corpora_and_searches_lead_back_to_their_ids(root: str) -> None:
    store = Store(root)
    corpus, search = store.corpus("an4-0123456789"), store.search("an4-abcdef0123")
    assert (corpus.corpus_id, search.search_id) == ("an4-0123456789", "an4-abcdef0123")
    assert (search.store, Run(search.uri).store) == (store, None)
    assert PreparedCorpus(corpus.uri) == corpus
    assert SearchFolder(search.uri) == search


def test_a_stores_files_are_where_the_interface_promises() -> None:
    store = Store("s3://bucket/store?region=eu")
    run, corpus = store.run("r"), store.corpus("c")
    uris = [
        run.spec, run.facts, run.model.fold, run.checkpoint(7, "0001-0002").manifest, run.metrics_part("0001-0002", 3),
        corpus.manifest, corpus.index, corpus.quarantine, corpus.shards, store.results, store.hypotheses,
    ]  # fmt: skip
    assert [uri.removeprefix("s3://bucket/store/").removesuffix("?region=eu") for uri in uris] == [
        "runs/r/spec.json", "runs/r/run.json", "runs/r/model/fold.json",
        "runs/r/checkpoints/step-00000007-0001-0002/manifest.json", "runs/r/metrics/0001-0002-00000003.jsonl",
        "corpora/c/manifest.json", "corpora/c/index.parquet", "corpora/c/quarantine.parquet", "corpora/c/shards",
        "results", "hypotheses",
    ]  # fmt: skip


def test_no_other_module_names_a_file_of_the_store() -> None:
    named = {value for name, value in vars(layout).items() if name.endswith("_FILE")}
    named |= {Path(uri).name for uri in (Run("r").spec, Run("r").facts, SearchFolder("s").description)}
    package = Path(layout.__file__).parents[1]
    elsewhere = {
        (str(file.relative_to(package)), node.value)
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in named and file != Path(layout.__file__)
    }
    assert elsewhere == set()


def test_folders_outside_a_store_are_runs_of_no_store(tmp_path: Path) -> None:
    copied = str(tmp_path / "copied")
    assert Run.owning(copied) == Run(copied)
    assert Run(copied).store is None
    assert Run.owning(f"{copied}/checkpoints/notes") == Run(f"{copied}/checkpoints/notes")
    assert CheckpointFolder(f"{copied}/elsewhere/step-00000007-0001-0002").step is None


def test_relative_roots_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("./store") == Store(str(tmp_path / "store"))


def test_attempts_are_parsed_from_their_file_names() -> None:
    file = Run("s3://bucket/store/runs/r").attempt("0002-0001")
    assert parse_attempt(storage.split(file)[1]) == "0002-0001"
    assert parse_attempt("notes.json") is None


@pytest.mark.parametrize("content", [b"", b'{"half": ', b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_reported_with_its_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"run\.json: is damaged \(not valid JSON: .+\)$"):
        storage.read_json(str(file))


def test_run_facts_that_lack_a_field_are_damaged(tmp_path: Path) -> None:
    storage.write_json(Run(str(tmp_path)).facts, {"corpus": "c", "corpus_id": "c-1", "spec_hash": "1", "created": ""})
    with pytest.raises(DamagedFileError, match=r"run\.json: is damaged \(versions: field required\)$"):
        read_run_facts(str(tmp_path))


def test_json_is_created_once(tmp_path: Path) -> None:
    file = str(tmp_path / "claims" / "a.json")
    assert storage.create_json(file, {"owner": 1})
    assert not storage.create_json(file, {"owner": 2})
    assert storage.read_json(file) == {"owner": 1}
