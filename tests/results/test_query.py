"""Questions to a store: rows in == rows out, fronts == brute force, nothing but the store within reach of SQL."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foldray.errors import UserError
from foldray.results import cache
from foldray.results.comparison import compare_runs
from foldray.results.query import OBJECTIVES, list_rows, non_dominated, pareto, run_sql
from foldray.results.reader import read_hypotheses, read_rows
from foldray.results.rows import Hypothesis, write_rows
from foldray.results.searches import TrialRecord, write_record
from tests.support.commands import call
from tests.support.rows import WORDS, at, evaluation, hypothesis, row

pytest_plugins = ["tests.support.s3_server"]


def write_store(folder: Path) -> str:
    """Three runs of several depths on two test sets."""
    rng = random.Random(0)
    for number in range(3):
        for split in ("test", "other"):
            depths = [
                row(
                    run_id=f"run-{number}", split=split, depth=depth, wer=rng.random(), created=at(number),
                    bytes_stored=rng.randint(1, 5) * 1000, macs_per_audio_second=float(rng.randint(1, 9)),
                    rtfx=float(rng.randint(1, 9)), private="none" if number else "norms",
                )
                for depth in (2, 3, 4)
            ]  # fmt: skip
            write_rows(
                str(folder),
                depths,
                [hypothesis("one", "one", run_id=f"run-{number}", split=split, created=at(number))],
            )
    return str(folder)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return write_store(tmp_path)


def test_rows_in_are_rows_out_filtered_and_sorted(store: str) -> None:
    everything = read_rows(store)
    assert len(everything) == 18
    found, total = list_rows(store)
    assert total == 18
    assert sorted(found, key=str) == sorted(everything, key=str)
    assert [r["created"] for r in found] == sorted((r["created"] for r in found), reverse=True)

    found, total = list_rows(
        store, ["depth=2,4", "wer<0.6", "run_id~RUN", "split!=other", "private=none"], "wer,-depth"
    )
    wanted = [
        r
        for r in everything
        if r["depth"] in (2, 4) and r["wer"] < 0.6 and r["split"] == "test" and r["private"] == "none"
    ]
    assert found == sorted(wanted, key=lambda r: r["wer"])
    assert 0 < total == len(wanted) < 18
    found, total = list_rows(store, ["trained=true"], "-wer", 2)
    assert (total, [r["wer"] for r in found]) == (18, sorted((r["wer"] for r in everything), reverse=True)[:2])


@pytest.mark.parametrize(
    ("filters", "sort", "where"),
    [
        (["deph=3"], "wer", "deph"),
        (["depth"], "wer", "depth"),
        (["depth=three"], "wer", "depth"),
        (["trained=maybe"], "wer", "trained"),
        ([], "werr", "werr"),
        (["wer<0.1; DROP TABLE results"], "wer", "wer"),
        ([], "wer; DROP TABLE results", "wer; DROP TABLE results"),
    ],
)
def test_wrong_filters_are_named(store: str, filters: list[str], sort: str, where: str) -> None:
    with pytest.raises(UserError) as caught:
        list_rows(store, filters, sort)
    assert caught.value.where == where
    assert len(str(caught.value).splitlines()) == 1


def test_text_is_no_sql(store: str) -> None:
    assert list_rows(store, ["run_id=' OR 1=1 --"]) == ([], 0)
    assert list_rows(store, ["run_id~%"]) == ([], 0)


def test_scoring_again_replaces(store: str) -> None:
    again = row(run_id="run-1", depth=3, wer=0.5, created=at(90))
    write_rows(store, [again], [])
    found, total = list_rows(store, ["run_id=run-1", "split=test"], "depth")
    assert (total, [r["depth"] for r in found]) == (3, [2, 3, 4])
    assert found[1] == again
    assert len(read_rows(store)) == 18
    write_rows(store, [row(run_id="run-1", depth=3, step=200, created=at(90))], [])
    assert list_rows(store, ["run_id=run-1", "split=test"])[1] == 4, "another step is another evaluation"


@pytest.fixture
def merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """More than two files are merged into this cache."""
    monkeypatch.setattr(cache, "MANY", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.main
def test_merged_files_answer_as_they_did_alone(store: str, merging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything() -> list[Any]:
        said = run_sql(store, "SELECT * FROM hypotheses ORDER BY ALL")[0]
        return [*sorted(list_rows(store)[0], key=str), *pareto(store), *said]

    def same_as_alone() -> list[Any]:
        here = everything()
        with monkeypatch.context() as patch:
            patch.setattr(cache, "MANY", 1000)
            assert here == everything()
        return here

    def databases() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in merging.rglob("*.duckdb")}

    before = same_as_alone()
    first = databases()
    assert len(first) == 2, "of results and of hypotheses"
    again = row(run_id="run-1", depth=3, wer=0.5, created=at(90))
    write_rows(store, [again], [hypothesis("one", "two", run_id="run-1", depth=3, created=at(90))])
    assert again in same_as_alone()
    write_rows(store, [row(run_id="run-1", depth=4, wer=0.1, created=at(-1))], [hypothesis("a", "b", run_id="late")])
    assert sum(each.get("wer") == 0.1 for each in same_as_alone()) == 0, "older than what is merged"
    assert databases() == first
    write_rows(store, [row(run_id="run-9")], [hypothesis("a", "b", run_id="run-9")])
    assert len(same_as_alone()) > len(before)
    assert all(databases()[name] > made for name, made in first.items())
    for file in Path(store, "results").glob("run-1-*"):
        file.unlink()
    assert not [each for each in same_as_alone() if each["run_id"] == "run-1" and "wer" in each]
    for database in merging.rglob("*.duckdb"):
        database.write_bytes(b"of another DuckDB")
    same_as_alone()


# --- Pareto ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("values", [3, 10, 1000])
def test_fronts_are_those_of_brute_force(objectives: int, values: int) -> None:
    points_NO = np.random.default_rng(0).integers(values, size=(300, objectives)).astype(float)
    beaten = [any((other <= point).all() and (other < point).any() for other in points_NO) for point in points_NO]
    assert non_dominated(points_NO).tolist() == [not each for each in beaten]
    assert not non_dominated(np.empty((0, objectives))).size


def test_pareto_of_a_store(store: str) -> None:
    for objectives in (("wer", "bytes"), ("wer", "macs", "rtfx")):
        columns = [OBJECTIVES[name] for name in objectives]
        point = lambda r: [sign * r[name] for name, sign in columns]  # noqa: E731, B023
        everything = read_rows(store)
        front = {
            (r["run_id"], r["split"], r["depth"])
            for r in everything
            if not any(
                o["split"] == r["split"]
                and all(a <= b for a, b in zip(point(o), point(r), strict=True))
                and point(o) != point(r)
                for o in everything
            )
        }
        found = pareto(store, objectives)
        assert {(r["run_id"], r["split"], r["depth"]) for r in found} == front
        both = pareto(store, objectives, dominated=True)
        assert len(both) == 18
        assert {(r["run_id"], r["split"], r["depth"]) for r in both if not r["dominated"]} == front
    assert {r["split"] for r in pareto(store, ("wer", "bytes"), ["split=test"])} == {"test"}
    for wrong in (["wer"], ["wer", "wer"], ["wer", "size"], ["wer", "cer", "bytes", "macs"]):
        with pytest.raises(UserError, match="--of"):
            pareto(store, wrong)


# --- SQL -------------------------------------------------------------------------------------------


def test_sql_over_all_tables(store: str) -> None:
    rows, columns = run_sql(
        store, "SELECT depth, count(*) AS n, min(wer) AS best FROM results GROUP BY depth ORDER BY depth"
    )
    assert columns == ["depth", "n", "best"]
    best = {depth: min(r["wer"] for r in read_rows(store) if r["depth"] == depth) for depth in (2, 3, 4)}
    assert rows == [{"depth": depth, "n": 6, "best": wer} for depth, wer in best.items()]
    rows, _ = run_sql(
        store,
        "WITH r AS (SELECT DISTINCT run_id FROM results) SELECT count(*) AS n FROM r JOIN hypotheses USING (run_id)",
    )
    assert rows == [{"n": 6}]
    assert run_sql(store, 'SELECT count(*) AS n FROM main."runs"')[0] == [{"n": 0}]
    assert run_sql(store, "DESCRIBE results")[0][0]["column_name"] == "schema_version"


SECRET = "a line that nobody may read"
REFUSED = [
    "INSERT INTO results SELECT * FROM results", "DELETE FROM results", "UPDATE results SET wer = 0",
    "DROP VIEW results",
    "CREATE TABLE mine AS SELECT 1", "COPY results TO '{out}'", "COPY (SELECT 1) TO '{out}'", "EXPORT DATABASE '{out}'",
    "ATTACH '{out}' AS mine", "INSTALL httpfs", "LOAD httpfs", "LOAD '{secret}'", "SET enable_external_access = true",
    "RESET lock_configuration", "PRAGMA enable_external_access", "CALL pragma_version()", "USE main", "CHECKPOINT",
    "SELECT * FROM read_csv('{secret}')", "SELECT * FROM read_text('{secret}')", "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM '{secret}'", "SELECT * FROM read_parquet('{store}/results/*.parquet')", 
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_csv('{store}/results/../../secret.txt')", "SELECT * FROM read_json_auto('http://127.0.0.1:1/x')",
    "SELECT * FROM sniff_csv('{secret}')", "SELECT * FROM parquet_metadata('{secret}')", "SELECT 1; SELECT 2", "",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{out}''')", "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
    "SELECT * FROM nothing", "SELECT werr FROM results", "SELEC 1", "SELECT getenv('HOME')",
    "SELECT * FROM pytest_secret",
    "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')", "PREPARE p AS SELECT 1", "EXECUTE p",
]  # fmt: skip
pytest_secret = pa.table({"secret": [SECRET]})


def assert_refused(folder: Path, store: str, sql: str) -> None:
    """One line, without a word of what lies outside the store; nothing is written."""
    pytest_secret = pa.table({"secret": [SECRET]})  # noqa: F841  a table in Python's variables
    secret, out = folder.parent / "secret.txt", folder / "out"
    secret.write_text(SECRET)
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        run_sql(store, sql.format(secret=secret, out=out, store=store))
    assert caught.value.where == "sql"
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store` in it, which is only read."""
    folder = tmp_path_factory.mktemp("shared")
    write_store(folder / "store")
    return folder


@pytest.mark.parametrize("sql", REFUSED)
def test_sql_reads_nothing_but_the_store_and_writes_nothing(shared_folder: Path, sql: str) -> None:
    assert_refused(shared_folder, str(shared_folder / "store"), sql)


@pytest.fixture(scope="module")
def merged_folder(shared_folder: Path) -> Path:
    """The same with the store's files merged into `cache`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "MANY", 2)
        patch.setenv("XDG_CACHE_HOME", str(shared_folder / "cache"))
        list_rows(str(shared_folder / "store"))
        run_sql(str(shared_folder / "store"), "SELECT 1 FROM hypotheses")
    assert len([*shared_folder.rglob("*.duckdb")]) == 2
    return shared_folder


@pytest.mark.parametrize("sql", REFUSED)
def test_sql_over_merged_files_reads_nothing_else(
    merged_folder: Path, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MANY", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(merged_folder / "cache"))
    assert_refused(merged_folder, str(merged_folder / "store"), sql)


# --- Compare ---------------------------------------------------------------------------------------


def test_an_earlier_step_that_is_scored_later_is_not_what_counts(tmp_path: Path) -> None:
    said = ["one two three"] * 50
    store = str(tmp_path)
    for step, rate, minute in ((1000, 0.1, 0), (500, 0.6, 5)):
        rows_of = [evaluation("run", said, rate, depth=depth, step=step, created=at(minute)) for depth in (2, 4)]
        write_rows(store, [each[0] for each in rows_of], [h for each in rows_of for h in each[1]])
    (pair,) = compare_runs(store, "run", "run")
    wers = {r["depth"]: r["wer"] for r in list_rows(store, ["step=1000"])[0]}
    assert (pair["wer_a"], pair["wer_b"]) == (wers[2], wers[4])
    counted = run_sql(store, "SELECT step, count(*) AS n FROM hypotheses GROUP BY step ORDER BY step")[0]
    assert counted == [{"step": 500, "n": 100}, {"step": 1000, "n": 100}]


def test_a_comparison_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path)
    for run_id, rate in (("good", 0.05), ("bad", 0.5)):
        made = evaluation(run_id, ["one two three four"] * 100, rate)
        write_rows(store, [made[0]], made[1])
    (pair,) = compare_runs(store, "good", "bad")
    shown = call(capsys, "results", store, "compare", "good", "bad")[1]
    assert "A = good, B = bad, an4-1 test: 400 words" in shown
    cells = [f"{pair['wer_a']:.2%}", f"{pair['wer_b']:.2%}", f"{pair['difference']:+.2%}", "< 0.001", "yes"]
    assert [cell for cell in cells if cell not in shown] == []


@pytest.mark.main
def test_a_margin_says_whether_the_whole_interval_is_below_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path)
    for run_id, rate in (("good", 0.05), ("bad", 0.5)):
        made = evaluation(run_id, ["one two three four"] * 100, rate)
        write_rows(store, [made[0]], made[1])
    (plain,) = compare_runs(store, "bad", "good")
    assert 0 < plain["low"] < plain["difference"] < plain["high"] < 1
    assert not {"margin", "within_margin"} & plain.keys()
    for margin, within in ((plain["high"], True), (plain["difference"], False), (0.0, False)):
        assert compare_runs(store, "bad", "good", margin=margin) == [
            plain | {"margin": margin, "within_margin": within}
        ]
    for a, b, points, within in (("bad", "good", 0, False), ("good", "bad", 0, True), ("bad", "good", 99.5, True)):
        code, out, _ = call(capsys, "results", store, "compare", a, b, f"--margin={points}", "--json")
        (pair,) = json.loads(out)["pairs"]
        assert (code, pair["margin"], pair["within_margin"]) == (0, points / 100, within)
        shown = call(capsys, "results", store, "compare", a, b, f"--margin={points}")[1]
        assert f"A - B <= {points} %" in shown
        assert shown.split()[-1] == ("yes" if within else "no")
    assert "A - B <=" not in call(capsys, "results", store, "compare", "bad", "good")[1]
    code, _, err = call(capsys, "results", store, "compare", "bad", "good", "--margin=-1")
    assert code == 2, err
    assert "--margin" in err


def test_compare_two_runs_and_a_run_with_itself(tmp_path: Path) -> None:
    rng = random.Random(1)
    said = [" ".join(rng.choices(WORDS, k=6)) for _ in range(200)]
    store = str(tmp_path)
    for run_id, rates in (("good", {2: 0.12, 4: 0.1}), ("bad", {2: 0.2, 4: 0.4})):
        made = [evaluation(run_id, said, rate, depth=depth) for depth, rate in rates.items()]
        write_rows(store, [each[0] for each in made], [h for each in made for h in each[1]])
    pairs = compare_runs(store, "good", "bad")
    assert [(p["depth_a"], p["depth_b"]) for p in pairs] == [(2, 2), (2, 4), (4, 2), (4, 4)]
    wers = {(r["run_id"], r["depth"]): r["wer"] for r in read_rows(store)}
    for pair in pairs:
        assert pair["wer_a"] == wers["good", pair["depth_a"]]
        assert pair["wer_b"] == wers["bad", pair["depth_b"]]
        assert pair["low"] < pair["difference"] == pair["wer_a"] - pair["wer_b"] < pair["high"]
        assert pair["significant"] == (pair["p_value"] < 0.05)
    assert pairs[-1]["significant"]
    (own,) = compare_runs(store, "good", "good")
    assert (own["depth_a"], own["depth_b"]) == (2, 4)
    with pytest.raises(UserError, match="worse: has no results"):
        compare_runs(store, "good", "worse")
    write_rows(
        store, [row(run_id="elsewhere", split="other")], [hypothesis("one", "one", run_id="elsewhere", split="other")]
    )
    with pytest.raises(UserError, match="was scored on no test set"):
        compare_runs(store, "good", "elsewhere")
    made = evaluation("third", said, 0.2, depth=3)
    write_rows(store, [made[0]], made[1])
    with pytest.raises(UserError, match=r"no two depths were scored in all these runs .*good at 2, 4; third at 3"):
        compare_runs(store, "good,third", "bad,bad")
    with pytest.raises(UserError, match=r"no two depths .*third at 3"):
        compare_runs(store, "third", "third")
    write_rows(store, [row(run_id="fewer")], [hypothesis("one", "one", run_id="fewer")])
    with pytest.raises(UserError, match="different references"):
        compare_runs(store, "good", "fewer")


def test_trials_are_a_table(tmp_path: Path) -> None:
    search = tmp_path / "searches" / "quick-1"
    described = {"spec": {"search": {"objectives": ["wer"], "space": {}}}}
    search.mkdir(parents=True)
    (search / "search.json").write_text(json.dumps(described))
    told = {"objectives": {"wer": 0.25}, "loss": 0.5, "step": 9, "progress": 1.0}
    write_record(str(search), TrialRecord(3, "trial", "run-3", {}, ["loss.alpha=0.3"], "finished", **told))
    write_record(str(search), TrialRecord(4, "trial", "run-4", {}, [], "failed", error="no such depth"))
    columns = "trial, run_id, state, (objectives->>'$.wer')::DOUBLE AS wer, overrides, error"
    asked = f"SELECT {columns} FROM trials ORDER BY trial"
    assert run_sql(str(tmp_path), asked)[0] == [
        {"trial": "trial-0003", "run_id": "run-3", "state": "finished", "wer": 0.25,
         "overrides": ["loss.alpha=0.3"], "error": ""},
        {"trial": "trial-0004", "run_id": "run-4", "state": "failed", "wer": None, "overrides": [],
         "error": "no such depth"},
    ]  # fmt: skip
    assert run_sql(str(tmp_path), "SELECT count(*) AS n FROM results JOIN trials USING (run_id)")[0] == [{"n": 0}]
    unknown = json.dumps({"number": 3, "kind": "x", "run_id": "r", "config": {}, "overrides": []})
    for damage in ("{", "[]", '{"number": 3}', unknown):
        (search / "trials" / "trial-0004.json").write_text(damage)
        with pytest.raises(UserError, match=r"trial-0004\.json: is damaged \("):
            run_sql(str(tmp_path), asked)
    for damage in ("{", "[]", "{}"):
        (search / "search.json").write_text(damage)
        with pytest.raises(UserError, match=r"search\.json: is damaged \("):
            run_sql(str(tmp_path), asked)


def test_options_of_another_query_are_refused(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for query, option in (
        ("pareto", "--sort=wer"),
        ("compare", "--limit=3"),
        ("ls", "--dominated"),
        ("sql", "--of=wer"),
        ("ls", "--margin=0"),
        ("sql", "--by-speaker"),
    ):
        code, _, err = call(capsys, "results", store, query, option)
        assert code == 2, err
        assert f"{option.partition('=')[0]}: applies only to " in err
    shown = call(capsys, "results", store, "ls", "--columns", "private,seed")[1]
    assert "private" in shown
    code, _, err = call(capsys, "results", store, "ls", "--columns", "privat")
    assert code == 2, err
    assert "did you mean private" in err


SENTENCES = 80
EACH_ITS_OWN = [f"s{number}" for number in range(SENTENCES)]


def write_two_sides(store: str, corpus: str, speakers: list[str], times: int = 1) -> tuple[str, str]:
    """Hypotheses of a good and a bad run, each utterance `times` times and by the next of the speakers."""
    rng = random.Random(3)
    references = [" ".join(rng.choices(WORDS, k=6)) for _ in range(SENTENCES)]
    for name, rate in (("good", 0.1), ("bad", 0.3)):
        decoded = evaluation(name, references, rate)[1]
        fields = {"run_id": f"{name}-{corpus}", "corpus": corpus}
        rows: list[Hypothesis] = [
            {**each, "id": f"{each['id']}-{corpus}-{time}", "speaker": speaker, **fields}  # type: ignore[typeddict-item]
            for each, speaker in zip(decoded, itertools.cycle(speakers), strict=False)
            for time in range(times)
        ]
        write_rows(store, [row(run_id=f"{name}-{corpus}", corpus=corpus)], rows)
    return f"good-{corpus}", f"bad-{corpus}"


def interval(pair: dict[str, Any]) -> tuple[float, float]:
    return pair["low"], pair["high"]


def test_intervals_by_speaker_draw_whole_speakers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path)
    own = write_two_sides(store, "own", EACH_ITS_OWN)
    (plain,) = compare_runs(store, *own)
    (drawn,) = compare_runs(store, *own, by_speaker=True)
    assert drawn == plain | {"num_speakers": SENTENCES}
    thrice = write_two_sides(store, "thrice", EACH_ITS_OWN, times=3)
    (by_utterance,) = compare_runs(store, *thrice)
    (by_speaker,) = compare_runs(store, *thrice, by_speaker=True)
    assert interval(by_speaker) == pytest.approx(interval(plain)), "a speaker who says all thrice is one speaker"
    assert by_utterance["high"] - by_utterance["low"] < 0.7 * (plain["high"] - plain["low"])
    shown = call(capsys, "results", store, "compare", *thrice, "--by-speaker")[1]
    assert "1,440 words, 80 speakers" in " ".join(shown.split())
    # Parts of a cross-validation: speakers of all parts are drawn together.
    more = write_two_sides(store, "more", [f"t{number}" for number in range(SENTENCES)])
    (pooled,) = compare_runs(store, *map(",".join, zip(own, more, strict=True)), by_speaker=True)
    assert pooled["num_speakers"] == 2 * SENTENCES


def test_speakers_are_known_if_one_side_names_them(tmp_path: Path) -> None:
    store = str(tmp_path)
    named = write_two_sides(store, "named", EACH_ITS_OWN)
    (plain,) = compare_runs(store, *named)
    for name in ("good", "bad"):
        old: list[Hypothesis] = [
            {**each, "run_id": f"{name}-old", "speaker": ""} for each in read_hypotheses(store, f"{name}-named")
        ]
        write_rows(store, [row(run_id=f"{name}-old", corpus="named")], old)
    for sides in (("good-named", "bad-old"), ("good-old", "bad-named"), named):
        assert interval(compare_runs(store, *sides, by_speaker=True)[0]) == interval(plain)


def test_too_few_speakers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path)
    nameless = write_two_sides(store, "nameless", [""])
    code, out, _ = call(capsys, "results", store, "compare", *nameless, "--by-speaker", "--margin=1", "--json")
    assert code == 2, out
    assert "80 of 80 utterances have no speaker" in json.loads(out)["error"]
    for corpus, speakers, problem in (
        ("nobody", ["", "anna"], "40 of 80 utterances have no speaker"),
        ("few", ["a", "b", "c", "d"], "4 speakers are too few, at least 5 needed"),
    ):
        with pytest.raises(UserError, match=problem):
            compare_runs(store, *write_two_sides(store, corpus, speakers), by_speaker=True)


RATES = {"good": 0.1, "bad": 0.3}
PARTS_OF = ("good-part-1,good-part-2", "bad-part-1,bad-part-2")


def sentences(number: int = 120) -> list[str]:
    rng = random.Random(2)
    return [" ".join(rng.choices(WORDS, k=6)) for _ in range(number)]


def write_run(store: str, run_id: str, references: list[str], rate: float, corpus: str) -> int:
    """A row and its hypotheses; how many errors they have."""
    line, decoded = evaluation(run_id, references, rate, corpus=corpus)
    write_rows(store, [line], decoded)
    return sum(each["substitutions"] + each["deletions"] + each["insertions"] for each in decoded)


def write_parts(store: str) -> dict[str, int]:
    """The good and the bad side in two parts of a cross-validation; errors by run."""
    parts = {"part-1": sentences()[:70], "part-2": sentences()[70:]}
    return {
        f"{name}-{corpus}": write_run(store, f"{name}-{corpus}", references, rate, corpus)
        for name, rate in RATES.items()
        for corpus, references in parts.items()
    }


def test_random_seeds_of_one_test_set_are_compared_as_one(tmp_path: Path) -> None:
    store = str(tmp_path)
    errors = {
        f"{name}{seed}": write_run(store, f"{name}{seed}", sentences(), rate + 0.02 * seed, "same")
        for name, rate in RATES.items()
        for seed in (0, 1)
    }
    (pair,) = compare_runs(store, "good0,good1", "bad0,bad1")
    assert pair["corpus"] == "same"
    assert (pair["couples"], pair["num_utterances"], pair["num_words"]) == (2, 120, 720)
    assert pair["wer_a"] == (errors["good0"] + errors["good1"]) / 1440
    assert pair["wer_b"] == (errors["bad0"] + errors["bad1"]) / 1440
    assert pair["low"] < pair["difference"] < pair["high"] < 0


def test_the_same_utterances_twice_are_no_more_evidence_than_once(tmp_path: Path) -> None:
    """Neither where a run is named twice nor on another preparation of the same test set."""
    store = str(tmp_path)
    for name, rate in RATES.items():
        write_run(store, f"{name}0", sentences(), rate, "same")
        for corpus in ("first", "second"):
            decoded = evaluation(f"{name}0", sentences(), rate)[1]  # what they say is drawn by the run's name
            there: list[Hypothesis] = [{**each, "run_id": f"{name}-{corpus}", "corpus": corpus} for each in decoded]
            write_rows(store, [row(run_id=f"{name}-{corpus}", corpus=corpus)], there)
    (once,) = compare_runs(store, "good0", "bad0")
    (twice,) = compare_runs(store, "good0,good0", "bad0,bad0")
    assert interval(twice) == interval(once)
    assert (twice["segments"], twice["p_value"]) == (once["segments"], pytest.approx(once["p_value"]))
    (both,) = compare_runs(store, "good-first,good-second", "bad-first,bad-second")
    assert both["corpus"] == "first, second"
    assert (interval(both), both["num_words"]) == (interval(once), 720)
    assert both["p_value"] == pytest.approx(once["p_value"])


@pytest.mark.main
def test_parts_of_a_cross_validation_are_compared_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path)
    errors = write_parts(store)
    (pair,) = compare_runs(store, *PARTS_OF)
    assert (pair["corpus"], pair["num_utterances"], pair["num_words"]) == ("part-1, part-2", 120, 720)
    assert pair["wer_a"] == (errors["good-part-1"] + errors["good-part-2"]) / 720
    assert pair["significant"]
    shown = " ".join(call(capsys, "results", store, "compare", *PARTS_OF)[1].split())
    assert "A = good-part-1 and 1 more, B = bad-part-1 and 1 more, part-1 and 1 more test: 720 words" in shown
    # A test set on which all were scored too is a comparison of its own.
    for name, rate in RATES.items():
        for number in (1, 2):
            write_run(store, f"{name}-part-{number}", sentences(), rate, "elsewhere")
    both, again = compare_runs(store, *PARTS_OF)
    assert (both["corpus"], both["num_utterances"], again) == ("elsewhere", 120, pair)
    assert compare_runs(store, *PARTS_OF, ["corpus=part-1,part-2"]) == [pair]
    assert compare_runs(store, *PARTS_OF, ["corpus=elsewhere", "split=test"]) == [both]


def test_runs_that_cannot_be_compared_as_one_are_refused(tmp_path: Path) -> None:
    store = str(tmp_path)
    write_parts(store)
    for name, rate in RATES.items():
        for seed, corpus in ((0, "same"), (1, "same"), (0, "third")):
            write_run(store, f"{name}{seed}", sentences(), rate, corpus)
    swapped = (PARTS_OF[0], "bad-part-2,bad-part-1")
    for sides, filters, problem in (
        (PARTS_OF, ["split=other"], "on no test set"),
        (PARTS_OF, ["speaker=x"], "speaker=x: is not a filter of compare"),
        (
            ("good0,good-part-1", "bad0,bad-part-1"),
            ["corpus=same,third,part-1"],
            "one for each pair of runs: corpus=same,third",
        ),
        (("good0,", "bad0,"), [], "join several by single commas"),
        (("good0,good1", "bad0"), [], "give both sides equally many, not 2 and 1"),
        (swapped, ["corpus=part-1,part-2"], "was scored on no test set"),
    ):
        with pytest.raises(UserError, match=problem):
            compare_runs(store, *sides, filters)


# --- Columns ---------------------------------------------------------------------------------------


def test_unknown_columns_are_ignored_and_rows_must_be_complete(store: str) -> None:
    newer = {**row(run_id="new", schema_version=9), "colour": "red"}
    pq.write_table(pa.Table.from_pylist([newer]), Path(store, "results", "new-000000000000.parquet"))
    assert list_rows(store, ["run_id=new"])[0] == [row(run_id="new", schema_version=9)]
    incomplete: Any = {name: value for name, value in row().items() if name != "wer"}
    for wrong in (incomplete, newer):
        with pytest.raises(ValueError, match=r"columns missing or unknown: (wer|colour)$"):
            write_rows(store, [wrong], [])


# --- Many writers ----------------------------------------------------------------------------------


WRITERS, EVALUATIONS = 16, 25


def write_some(store: str, writer: int, looked: Path) -> None:
    """Write evaluations, the second half of them after the first look of the reader: then it writes a file.

    Not an Event of multiprocessing: setting it waits for ever for a process that was killed while it waited.
    """
    for number in range(EVALUATIONS):
        while number == EVALUATIONS // 2 and not looked.exists():
            time.sleep(0.05)
        rows = [row(run_id=f"w{writer}-{number}", depth=depth) for depth in (2, 3, 4)]
        time.sleep(0.3)
        write_rows(
            store, rows, [hypothesis("one two", "one", run_id=f"w{writer}-{number}", depth=d) for d in (2, 3, 4)]
        )


@pytest.mark.main
def test_sixteen_writers_and_readers_all_the_while(tmp_path: Path) -> None:
    """Some writers are killed at random: of each evaluation there are all rows or none, and its hypotheses first."""
    store = str(tmp_path)
    context = multiprocessing.get_context("fork")
    looked = tmp_path / "looked"
    writers = [context.Process(target=write_some, args=(store, number, looked)) for number in range(WRITERS)]
    (tmp_path / "results").mkdir()
    for writer in writers:
        writer.start()
    rng = random.Random(0)
    killed = set(rng.sample(range(WRITERS), 4))
    looks = 0
    while any(writer.is_alive() for writer in writers):
        counted = run_sql(store, "SELECT run_id, count(*) AS n FROM results GROUP BY run_id")[0]
        assert {each["n"] for each in counted} <= {3}
        with_words = run_sql(store, "SELECT DISTINCT run_id FROM hypotheses")[0]
        assert {each["run_id"] for each in counted} <= {each["run_id"] for each in with_words}
        looks += 1
        if looks == 1:
            for number in killed:
                with contextlib.suppress(ProcessLookupError):  # it has written everything
                    os.kill(writers[number].pid or 0, signal.SIGKILL)
            looked.touch()
    for writer in writers:
        writer.join()
    assert looks > 1
    rows, total = list_rows(store)
    assert total == len(rows) == len(read_rows(store))
    complete = {
        f"w{writer}-{number}" for writer in range(WRITERS) if writer not in killed for number in range(EVALUATIONS)
    }
    found = [(r["run_id"], r["depth"]) for r in rows]
    assert len(set(found)) == len(found)
    assert complete <= {run_id for run_id, _ in found}
    assert all(sum(run_id == each for run_id, _ in found) == 3 for each in {run_id for run_id, _ in found})


# --- On S3 -----------------------------------------------------------------------------------------


@pytest.mark.main
def test_a_bucket_is_asked_for_each_file_once(s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foldray.storage.s3 import client_of

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[str] = []
    for number in range(30):
        write_rows(s3_store, [row(run_id=f"run-{number}")], [hypothesis("one", "one", run_id=f"run-{number}")])
    client_of(s3_store).meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))

    def requests(question: Any) -> list[str]:
        asked.clear()
        question()
        return sorted(set(asked)), len(asked)  # type: ignore[return-value]

    ls = lambda: list_rows(s3_store)  # noqa: E731
    # The listing, and the files.
    assert requests(ls) == (["GetObject", "ListObjectsV2"], 1 + 30)
    assert requests(ls) == (["ListObjectsV2"], 1)
    write_rows(s3_store, [row(run_id="run-30")], [])
    assert requests(ls) == (["GetObject", "ListObjectsV2"], 1 + 1)
    assert list_rows(s3_store)[1] == 31
    assert requests(lambda: compare_runs(s3_store, "run-1", "run-2"))[1] == 4 + 2, "of hypotheses the two runs' only"


def test_without_a_cache_the_answer_is_the_same(s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache._process_folder.cache_clear()
    write_rows(s3_store, [row(), row(depth=2)], [])
    assert [r["depth"] for r in list_rows(s3_store, sort="depth")[0]] == [2, 4]


# --- The command -----------------------------------------------------------------------------------


def test_whatever_sql_answers_is_json(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    sql = (
        "SELECT sum(num_words) AS n, 0.5 AS half, max(created)::TIMESTAMPTZ AS at, DATE '2026-01-02' AS day, "
        "'ab'::BLOB AS raw, 'nan'::DOUBLE AS none, [1.5] AS list, {'a': 1.0::DECIMAL(4,1)} AS map FROM results"
    )
    (found,) = json.loads(call(capsys, "results", store, "sql", sql, "--json")[1])["rows"]
    assert found.pop("at").startswith("2026-01-01T00:02:00")
    assert found == {
        "n": 1800, "half": 0.5, "day": "2026-01-02", "raw": "6162", "none": None, "list": [1.5], "map": {"a": 1},
    }  # fmt: skip
    assert call(capsys, "results", store, "sql", "SUMMARIZE results", "--json")[0] == 0
    code, _, err = call(capsys, "results", store, "sql", "SELECT 1 AS x, 2 AS x")
    assert code == 2, err
    assert "two columns are called x" in err
    assert run_sql(store, "SELECT current_setting('temp_directory') AS at")[0] == [{"at": ""}]
    code, _, err = call(capsys, "results", store, "ls", f"depth={'9' * 43}")
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err


def test_brackets_are_no_markup(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(store, [row(run_id="odd")], [hypothesis("a", "one [noise] two [/noise]", run_id="odd")])
    out = call(capsys, "results", store, "sql", "SELECT hypothesis FROM hypotheses WHERE run_id = 'odd'")[1]
    assert "one [noise] two [/noise]" in out


def test_a_damaged_file_is_named(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(store) / "results" / "other-000000000000.parquet").write_bytes(b"no Parquet")
    code, _, err = call(capsys, "results", store)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert "other-000000000000.parquet: can't be read as results" in err


def test_a_damaged_cache_is_made_again(store: str, merging: Path) -> None:
    wanted = list_rows(store)
    (database,) = merging.rglob("*.duckdb")
    content = bytearray(database.read_bytes())
    for place in range(3 * 4096, len(content), 50):  # behind the headers
        content[place] ^= 255
    database.write_bytes(bytes(content))
    with contextlib.suppress(UserError):  # "ask again"
        list_rows(store)
    assert list_rows(store) == wanted
    assert merging.joinpath("foldray").stat().st_mode & 0o77 == 0, "nobody else reads it"


def test_files_that_are_no_runs_hide_nothing(store: str, merging: Path) -> None:
    wanted = list_rows(store)
    assert [*merging.rglob("*.duckdb")]
    pq.write_table(pa.table({"colour": ["red"]}), Path(store, "results", "foreign.parquet"))
    assert list_rows(store) == wanted


@pytest.mark.main
def test_the_command(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "results", store, "ls", "depth=3", "--sort", "wer", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"rows": list_rows(store, ["depth=3"], "wer")[0], "total": 6}
    assert json.loads(call(capsys, "results", store, "--json")[1])["total"] == 18
    code, out, err = call(capsys, "results", store, "ls", "--limit", "2")
    assert (code, len(out.strip().splitlines())) == (0, 3)
    assert "2 of 18 rows" in err
    code, out, _ = call(capsys, "results", store, "pareto", "--of", "wer,rtfx", "--json")
    assert json.loads(out)["rows"] == pareto(store, ["wer", "rtfx"])
    assert "run-0" in call(capsys, "results", store, "pareto")[1]
    assert "peak_rss_bytes" in call(capsys, "results", store, "pareto", "--of", "wer,memory")[1], (
        "what is weighed is shown"
    )
    code, out, _ = call(capsys, "results", store, "sql", "SELECT max(depth) AS deepest FROM results", "--json")
    assert json.loads(out) == {"rows": [{"deepest": 4}]}
    assert call(capsys, "results", store, "sql", "SELECT max(depth) AS deepest FROM results")[1].split() == [
        "deepest",
        "4",
    ]
    for arguments in (["lss"], ["compare", "run-0"], ["sql"], ["sql", "DROP VIEW results"], ["ls", "wer"]):
        code, out, err = call(capsys, "results", store, *arguments)
        assert code == 2, err
        assert out == ""
        assert len(err.strip().splitlines()) == 1, err


@pytest.mark.main
def test_it_starts_without_ray(store: str) -> None:
    program = (
        "import sys; from foldray.cli.main import main; main(['results', sys.argv[1], 'pareto']);"
        "assert not {'ray', 'torch', 'transformers', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, store], check=True, capture_output=True)
