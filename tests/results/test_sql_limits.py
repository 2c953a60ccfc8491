"""SQL of any size: it ends at Ctrl-C and at its limits, and every value prints."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from foldray.errors import UserError
from foldray.results import query
from foldray.results.query import run_sql
from foldray.results.rows import write_rows
from tests.support.commands import call
from tests.support.rows import hypothesis, row

ENDLESS = "SELECT count(*) FROM range(1000000) a, range(10000000) b WHERE (a.range * b.range) % 7 = 3"


@pytest.fixture
def store(tmp_path: Path) -> str:
    write_rows(str(tmp_path), [row()], [hypothesis("one", "one")])
    return str(tmp_path)


def test_ctrl_c_ends_a_query(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    code, out, err = call(capsys, "results", store, "sql", ENDLESS)
    assert (code, out) == (1, "")
    assert err == "stopped; run the same command again to resume\n"


@pytest.mark.main
def test_limits_of_time_and_rows_are_one_line(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "SQL_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"sql: takes more than 0\.2 s; select less, or add LIMIT"):
        run_sql(store, ENDLESS)
    monkeypatch.setattr(query, "MOST_ROWS", 10)
    with pytest.raises(UserError, match=r"sql: gives more than 10 rows; add LIMIT"):
        run_sql(store, "SELECT * FROM range(11)")
    assert len(run_sql(store, "SELECT * FROM range(10)")[0]) == 10
    assert len(run_sql(store, "SELECT * FROM range(9)", limit=3)[0]) == 3


@pytest.mark.parametrize(
    ("selected", "value"),
    [
        ("DATE '2026-01-02'", "2026-01-02"),
        ("TIMESTAMP '2026-01-02 03:04:05'", "2026-01-02T03:04:05"),
        ("INTERVAL 3 MONTH", "3 months"),
        ("'infinity'::DATE", "infinity"),
        ("DATE '99999-01-01'", "99999-01-01"),
        ("[TIMESTAMP '290000-01-01']", "['290000-01-01 00:00:00']"),
        ("DATE '0044-03-15 (BC)'", "0044-03-15 (BC)"),
        ("'nan'::FLOAT", None),
    ],
)
def test_every_value_prints(store: str, capsys: pytest.CaptureFixture[str], selected: str, value: str | None) -> None:
    _, out, _ = call(capsys, "results", store, "sql", f"SELECT {selected} AS v", "--json")
    assert json.loads(out)["rows"] == [{"v": value}]
    code, out, _ = call(capsys, "results", store, "sql", f"SELECT {selected} AS v")
    assert (code, out.splitlines()[1].strip()) == (0, value or "")


def test_columns_without_end_are_printed_one_a_line(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ", ".join(f"{number} AS c{number}" for number in range(2000))
    code, out, _ = call(capsys, "results", store, "sql", f"SELECT {columns}")
    assert (code, out.splitlines()) == (0, [f"row 1 c{number}: {number}" for number in range(2000)])


def test_errors_name_what_is_near(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = call(capsys, "results", store, "sql", "SELECT\n*\nFORM results")
    assert err == 'sql: Parser Error: syntax error at or near "results" (tables: results, hypotheses, runs, trials)\n'
    _, _, err = call(capsys, "results", store, "ls", "werr<1")
    assert err.startswith("werr: is not a column; did you mean wer or ")
    (tmp_path / "other").mkdir()
    code, _, err = call(capsys, "results", str(tmp_path / "other"), "ls")
    assert (code, err) == (
        2,
        f"STORE: {tmp_path / 'other'} is a folder without a store; give the storage.root of a run\n",
    )
