"""`foldray tune` on Ray, killed on the way: finished trials are not repeated, no row is doubled."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from foldray.results.metrics import read_metrics
from foldray.results.reader import read_rows
from foldray.results.searches import read_records
from tests.support.commands import TINY, finish, foldray
from tests.support.hosts import wait_until

pytestmark = pytest.mark.ray

SEARCH = {
    "trials": 3,
    "concurrent": 2,
    "sampler": "random",
    "space": {
        "loss.alpha": {"uniform": [0.2, 1.0]},
        "fold.private": {"choice": ["none", "norms"]},
        # Two of them are far too low: whichever of these comes to a rung after the first is stopped there.
        "optim.lr": {"grid": [0.003, 0.00001, 0.000005]},
    },
    "objectives": ["wer", "bytes"],
    "baselines": [6],
    "start": {"optim.steps": 4},
    "asha": {"grace": 0.3},
}


@pytest.mark.main
def test_a_search_trains_its_trials_and_keeps_their_rows(own_corpus: Path, tmp_path: Path) -> None:
    search = {"trials": 2, "sampler": "random", "asha": None, "space": {"loss.alpha": {"grid": [0.3, 0.7]}}}
    place = [f"corpus.path={own_corpus}", f"storage.root={tmp_path / 'store'}"]
    short = [*TINY, "optim.steps=8", "valid.every_steps=4", "scale.workers=1"]
    result = finish(foldray("tune", "an4", *place, *short, f"search={json.dumps(search)}", "--json"))
    assert [(trial["name"], trial["state"]) for trial in result["trials"]] == [
        ("trial-0000", "finished"),
        ("trial-0001", "finished"),
    ]
    found = {record.run_id: record for record in records(tmp_path / "store")}
    assert sorted(record.config["loss.alpha"] for record in found.values()) == ["0.3", "0.7"]
    rows = read_rows(str(tmp_path / "store"))
    assert {(row["run_id"], row["depth"]) for row in rows} == {(run, depth) for run in found for depth in (3, 6)}
    assert len(rows) == 4, "none is doubled"
    by_place = lambda row: (row["run_id"], row["depth"])  # noqa: E731
    assert sorted(result["rows"], key=by_place) == sorted(rows, key=by_place)


@pytest.mark.soak
def test_a_killed_search_goes_on_and_repeats_nothing(own_corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    short = [*TINY, "optim.steps=16", "valid.every_steps=4", "scale.workers=1"]
    recipe = ["an4", f"corpus.path={own_corpus}", *short, f"search={json.dumps(SEARCH)}", f"storage.root={store}"]
    kill_after_two_trials(foldray("tune", *recipe), store)
    before = {record.run_id: attempts(store, record.run_id) for record in records(store) if record.state != "running"}

    # Nothing is left but the store, under another name.
    store = store.rename(tmp_path / "elsewhere")
    shutil.rmtree(own_corpus)
    (search,) = (store / "searches").iterdir()
    result = finish(foldray("resume", str(search), "--json"))
    assert result["search_id"] == search.name
    assert [trial["name"] for trial in result["trials"]] == [
        "start",
        "trial-0000",
        "trial-0001",
        "trial-0002",
        "baseline-0006",
    ]
    assert {run_id: attempts(store, run_id) for run_id in before} == before, "what was done is not done again"
    found = {record.name: record for record in records(store)}
    assert_trials_are_whole(store, found)
    (alone,) = read_rows(str(store), found["baseline-0006"].run_id)
    assert (alone["kind"], alone["depth"], alone["step"]) == ("baseline", 6, 16 + 4)
    everything = [(row["run_id"], row["depth"]) for row in read_rows(str(store))]
    assert len(set(everything)) == len(everything), "none is doubled"
    assert {(row["run_id"], row["depth"]) for row in result["rows"]} == set(everything)


def kill_after_two_trials(process: "subprocess.Popen[str]", store: Path) -> None:
    """SIGKILL of a search as soon as two trials have finished; the start is one."""
    try:
        wait_until(lambda: states(store).count("finished") > 1 or process.poll() is not None, "a finished trial")
    finally:
        process.kill()
    _, err = process.communicate()
    assert states(store).count("finished") > 1, err


def assert_trials_are_whole(store: Path, found: dict[str, Any]) -> None:
    """Every trial took each step once; those that ended have rows, those that were stopped have none."""
    ended = {name: record.state for name, record in found.items()}
    assert (ended["start"], ended["baseline-0006"]) == ("finished", "finished")
    stopped = sum(ended[f"trial-000{i}"] == "stopped" for i in range(3))
    assert sorted(ended[f"trial-000{i}"] for i in range(3)) == ["finished"] * (3 - stopped) + ["stopped"] * stopped
    assert stopped in (1, 2)
    for record in found.values():
        steps = [each["step"] for each in read_metrics(str(store / "runs" / record.run_id))]
        assert steps == list(range(1, len(steps) + 1)), "every step once"
        rows = read_rows(str(store), record.run_id)
        if record.state == "stopped":
            assert rows == []
            assert record.step < 16
            assert 0.3 <= record.progress < 1
        elif record.kind == "trial":
            assert (len(steps), [row["depth"] for row in rows]) == (16, [3, 6])
            assert record.objectives["bytes"] == rows[0]["bytes_stored"]
            assert record.progress == 1.0


def records(store: Path) -> list[Any]:
    return [record for search in store.glob("searches/*") for record in read_records(str(search))]


def states(store: Path) -> list[str]:
    return [record.state for record in records(store)]


def attempts(store: Path, run_id: str) -> list[str]:
    return sorted(path.name for path in (store / "runs" / run_id / "attempts").iterdir())
