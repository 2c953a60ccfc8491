"""What is printed: names and texts of strangers move no cursor and forge no line, in any locale."""

import ast
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from foldray.results.rows import write_rows
from foldray.runtime.terminal import prepare_streams, print_json, print_line, print_status, print_table, printable
from tests.support.commands import call
from tests.support.paths import PROJECT
from tests.support.rows import hypothesis, row

FORGED = "a\x1b[2J\x9b1A\r\nprepared  9999 of 9999\u2028\u202e"
SHOWN = r"a\x1b[2J\x9b1A\r\nprepared  9999 of 9999\u2028\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (FORGED, SHOWN),
        ("tab\tbell\a\x7f\0", r"tab\tbell\x07\x7f\x00"),
        ("\u2066\u061c\u200b\ufeff\u2029", r"\u2066\u061c\u200b\ufeff\u2029"),
        ("tag \U000e0041", r"tag \U000e0041"),
        (os.fsdecode(b"caf\xe9.wav"), r"caf\udce9.wav"),
        ("naïve 日本 क\u200dष 👩\u200d🚀", "naïve 日本 क\u200dष 👩\u200d🚀"),
    ],
)
def test_only_characters_that_a_terminal_obeys_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_way_to_print_filters(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(FORGED)
    print_line(FORGED)
    print_table(FORGED, [FORGED], [[FORGED]])
    print_json({"text": FORGED, "nan": float("nan"), "nested": [{"inf": float("inf")}]})
    captured = capsys.readouterr()
    assert captured.err == f"{SHOWN}\n"
    *lines, last = captured.out.splitlines()
    assert [line.strip() for line in lines] == [SHOWN] * 4
    assert json.loads(last) == {"text": FORGED, "nan": None, "nested": [{"inf": None}]}


def test_warnings_logs_and_tracebacks_filter(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((sys, "excepthook"), (warnings, "showwarning"), (logging.lastResort, "formatter")):
        monkeypatch.setattr(module, name, getattr(module, name))
    prepare_streams()
    warnings.showwarning(UserWarning(FORGED), UserWarning, "a.py", 1)
    assert logging.lastResort
    record = logging.LogRecord("foldray", logging.WARNING, "a.py", 1, FORGED, None, None)
    print_status(logging.lastResort.format(record))
    sys.excepthook(ValueError, ValueError(FORGED), None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [f"UserWarning: {SHOWN}", SHOWN]
    assert [line for line in lines[2:] if line.startswith("prepared")] == []


def test_no_other_module_prints() -> None:
    prints = {
        f"{file.relative_to(PROJECT)}:{node.lineno}"
        for folder in ("foldray", "pipelines")
        for file in (PROJECT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id in ("print", "Console"))
        or (isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "echo", "secho"))
        if file.name != "terminal.py"
    }
    allowed = {line for line in prints if line.startswith("foldray/training/launch.py")}  # the output of git
    assert prints - allowed == set()


HOSTILE = {
    "corpus path": ["train", "an4", f"corpus.path=/nowhere/{FORGED}"],
    "key": ["plan", "an4", f"{FORGED}=1"],
    "nested key": ["plan", "an4", f"optim.{FORGED}=1"],
    "value": ["plan", "an4", f"optim.schedule={FORGED!r}"],
    "recipe": ["plan", FORGED],
    "store": ["results", f"/nowhere/{FORGED}"],
    "filter": ["results", ".", "ls", FORGED],
    "option": ["plan", f"--{FORGED}"],
}


@pytest.mark.parametrize("arguments", HOSTILE.values(), ids=HOSTILE)
def test_an_error_is_one_line_whatever_it_names(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 2
    assert set(json.loads(out)) == {"error", "where"}


def test_a_recipe_file_with_a_hostile_key_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "odd.yaml"
    recipe.write_text(json.dumps({"extends": "an4", "optim": {FORGED: 1}}), encoding="utf-8")
    code, _, err = call(capsys, "plan", str(recipe))
    assert code == 2
    assert err.startswith(f"optim.{SHOWN}: unknown field")
    assert len(err.splitlines()) == 1


def test_rows_of_a_foreign_store_forge_no_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = str(tmp_path)
    write_rows(store, [row(run_id=f"run-{FORGED}", corpus=FORGED)], [hypothesis("one", FORGED)])
    _, out, err = call(capsys, "results", store, "ls")
    assert (len(out.splitlines()), err) == (2, "")
    assert SHOWN in out
    query = f'SELECT run_id, corpus AS "{FORGED}", chr(27) || chr(10) AS more FROM results'
    code, out, _ = call(capsys, "results", store, "sql", query)
    assert (code, len(out.splitlines())) == (0, 2)
    assert "\x1b" not in out
    _, out, _ = call(capsys, "results", store, "sql", query, "--json")
    assert json.loads(out)["rows"] == [{"run_id": f"run-{FORGED}", FORGED: FORGED, "more": "\x1b\n"}]


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}], ids=str
)
def test_every_locale_prints(tmp_path: Path, locale: dict[str, str]) -> None:
    write_rows(str(tmp_path), [row(run_id="run-1", language="größe", corpus="日本")], [])
    query = "SELECT language, corpus FROM results"
    command = [sys.executable, "-m", "foldray", "results", str(tmp_path), "sql", query]
    environment = {**os.environ, "PYTHONUTF8": "0", **locale}
    printed = subprocess.run(command, capture_output=True, env=environment, cwd=PROJECT, check=True)
    assert printed.stdout.decode("ascii").splitlines()[1].split() == [r"gr\xf6\xdfe", r"\u65e5\u672c"]


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("json_too", ["", "--json"])
def test_a_closed_terminal_stops_nothing(closed: str, json_too: str) -> None:
    """https://github.com/mandarons/icloudpy/issues/23: services and windowed programs have no stdout."""
    command = f"{sys.executable} -m foldray recipes {json_too} {closed}"
    printed = subprocess.run(["sh", "-c", command], capture_output=True, cwd=PROJECT, check=False)
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, b"", b"")
