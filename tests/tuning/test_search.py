"""What a search draws and what it makes of it; the search itself is in test_tune.py."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import optuna
import pytest

from foldray.config.recipes import load_recipe
from foldray.config.search import SearchSpec
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.results.searches import Search, TrialRecord, importances, read_records, read_searches, write_record
from foldray.training.fencing import claim_submission
from foldray.training.job import RunStopped
from foldray.tuning.space import baseline_spec, grid_points, overrides_of, points_left, start_spec, suggest, trial_spec
from foldray.tuning.trial_process import SearchAttempt, ended_twin, run_trial_process
from tests.support.commands import call

SPACE = {
    "fold.order": {"choice": ["in_place", "cycle"]},
    "fold.private": {"choice": ["none", "lora", "norms+lora"]},
    "fold.lora_rank": {"integer": [2, 8], "when": {"fold.private": ["lora", "norms+lora"]}},
    "loss.alpha": {"uniform": [0.2, 1.0]},
    "loss.beta": {"loguniform": [0.01, 1.0]},
}


def spec_with(**search: Any) -> RunSpec:
    return load_recipe("quickstart", [f"search={json.dumps({'space': SPACE, **search})}"])


def drawn(search: SearchSpec, count: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [suggest(search, study.ask()) for _ in range(count)]


def test_every_draw_is_a_spec_and_conditions_hold() -> None:
    spec = spec_with()
    assert spec.search
    configs = drawn(spec.search, 60)
    assert {json.loads(config["fold.order"]) for config in configs} == {"in_place", "cycle"}
    for config in configs:
        assert ("fold.lora_rank" in config) == ("lora" in config["fold.private"])
        trial = trial_spec(spec, config)
        assert trial.search is None
        assert trial.fold.order == json.loads(config["fold.order"])
        assert (trial.fold.lora_rank or 0) == config.get("fold.lora_rank", 0)
        assert trial.loss.alpha == pytest.approx(config["loss.alpha"], rel=5e-3)
        assert 0.2 <= trial.loss.alpha <= 1.0
        repeated = load_recipe("quickstart", overrides_of(spec.search, config))
        assert repeated.run_id("corpus", "units") == trial.run_id("corpus", "units"), "an ordinary run of that recipe"


@pytest.mark.parametrize(
    ("domain", "value", "text"),
    [
        ({"uniform": [0.2, 1.0]}, 0.512345, "0.512"),
        ({"uniform": [0.999, 0.9999]}, 0.99966, "0.99966"),
        ({"uniform": [0.999, 0.9999]}, 0.9999, "0.9999"),
        ({"uniform": [0.0, 0.4999]}, 0.49989, "0.4999"),
        ({"loguniform": [1e-5, 1e-2]}, 0.00123456, "0.00123"),
        ({"loguniform": [0.99, 1.0]}, 0.998764, "0.9988"),
        ({"uniform": [0.5, 0.5]}, 0.5, "0.5"),
    ],
)
def test_numbers_are_as_short_as_their_domain_allows(domain: dict[str, Any], value: float, text: str) -> None:
    search = spec_with(space={"loss.alpha": domain}).search
    assert search
    assert overrides_of(search, {"loss.alpha": value}) == [f"loss.alpha={text}"]


def test_grids_are_walked_through_first() -> None:
    grid = {"seed": {"grid": [0, 1]}, "fold.depths": {"grid": [[3, 6], [3, 4, 6], [3, 9]]}}
    spec = spec_with(space={**grid, "loss.alpha": {"uniform": [0, 1]}}, trials=8)
    assert spec.search
    points = grid_points(spec.search)
    assert len(points) == 6
    assert {(point["seed"], point["fold.depths"]) for point in points} == {
        (s, d) for s in ("0", "1") for d in ("[3, 6]", "[3, 4, 6]", "[3, 9]")
    }
    fewer = spec_with(space=grid, trials=2).search
    assert fewer
    assert grid_points(fewer) == points[:2]
    with_more = [{**points[number], "loss.alpha": 0.5} for number in (1, 4)]
    assert points_left(spec.search, with_more) == [points[number] for number in (0, 2, 3, 5)]
    study = optuna.create_study()
    study.enqueue_trial(points[3])
    config = suggest(spec.search, study.ask())
    assert {name: config[name] for name in points[3]} == points[3]
    assert trial_spec(spec, config).fold.depths == tuple(json.loads(points[3]["fold.depths"]))


def test_start_and_baselines() -> None:
    spec = spec_with(start={"optim.epochs": 5, "fold.depths": [3, 6]}, baselines=[6], concurrent=3)
    start, alone = start_spec(spec), baseline_spec(spec, 6)
    assert (start.optim.epochs, start.search, start.scale.workers) == (5, None, 3 * spec.scale.most_workers)
    assert alone.fold.depths == (6,)
    assert alone.fold.num_layers == 6
    assert (alone.model, alone.augment, alone.loss) == (spec.model, spec.augment, spec.loss)
    assert alone.optim.epochs == (spec.optim.epochs or 0) + 5, "as long as a trial and the start before it"
    assert baseline_spec(spec_with(baselines=[6]), 6).optim.epochs == spec.optim.epochs


@pytest.mark.parametrize(
    ("search", "where", "problem"),
    [
        ({"space": {}}, "search", "space: name at least one field"),
        ({"space": {"loss.alfa": {"uniform": [0, 1]}}}, "search", "loss.alfa is not a field"),
        ({"space": {"loss": {"choice": [1]}}}, "search", "loss is not a field"),
        ({"space": {"fold.depths.x": {"choice": [1]}}}, "search", "fold.depths.x is not a field"),
        ({"space": {"optim.lr.x": {"choice": [1]}}}, "search", "optim.lr.x is not a field"),
        ({"space": {"scale.workers": {"choice": [1, 2]}}}, "search", "scale.workers can't be searched"),
        ({"space": {"corpus.path": {"choice": ["a", "b"]}}}, "search", "corpus.path can't be searched"),
        ({"space": {"loss.alpha": {"uniform": [0, 1], "choice": [1]}}}, "search.space.loss.alpha", "give one of"),
        ({"space": {"loss.alpha": {"uniform": [1, 0]}}}, "search.space.loss.alpha", "must be smaller"),
        ({"space": {"loss.alpha": {"loguniform": [0, 1]}}}, "search.space.loss.alpha", "above 0"),
        ({"space": {"loss.alpha": {"choice": []}}}, "search.space.loss.alpha", "needs at least one value"),
        ({"space": {"loss.alpha": {"choice": [1], "when": {"loss.beta": [1]}}}}, "search", "not named before it"),
        ({"space": SPACE, "objectives": ["per"]}, "search", "'per' must be one of"),
        ({"space": SPACE, "objectives": []}, "search", "name at least one"),
        ({"space": SPACE, "objectives": ["wer", "wer"]}, "search", "objectives: contains a duplicate"),
        ({"space": SPACE, "baselines": [6, 6]}, "search", "baselines: contains a duplicate"),
        ({"space": SPACE, "baselines": [0]}, "search", "depths must be 1 or more"),
        ({"space": SPACE, "start": {"optim.lr": -1}}, "optim.lr", "greater than 0"),
        (
            {"space": SPACE, "baselines": [6], "start": {"optim.epochs": None, "optim.steps": 9}},
            "search.start",
            "give both in epochs",
        ),
        ({"space": SPACE, "sampler": "grid"}, "search.sampler", "must be one of tpe, nsga2, random"),
        ({"space": SPACE, "asha": {"grace": 2}}, "search.asha.grace", "less than 1"),
        ({"space": SPACE, "trails": 3}, "search.trails", "did you mean 'trials'"),
    ],
)
def test_wrong_searches_are_named(
    capsys: pytest.CaptureFixture[str], search: dict[str, Any], where: str, problem: str
) -> None:
    code, out, err = call(capsys, "tune", "quickstart", f"search={json.dumps(search)}")
    assert (code, out) == (2, "")
    assert err.startswith(f"{where}: "), err
    assert problem in err
    assert len(err.strip().splitlines()) == 1


def test_a_search_needs_a_validation_split_and_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "tune", "quickstart")
    assert code == 2
    assert "has no section `search`" in err
    with pytest.raises(UserError, match=r"add valid to corpus\.splits"):
        load_recipe("quickstart-search", ["corpus.splits=[train,test]"])


def test_the_same_search_has_the_same_id() -> None:
    spec = spec_with()
    assert spec.search_hash("c", "u") == spec_with(trials=50, concurrent=4).search_hash("c", "u"), (
        "a longer one goes on"
    )
    others = [spec_with(seed=1), spec_with(sampler="random"), spec_with(objectives=["wer", "bytes"])]
    assert len({other.search_hash("c", "u") for other in [spec, *others]}) == 4
    assert spec.run_id("c", "u") == load_recipe("quickstart").run_id("c", "u")
    assert spec.search_hash("c", "u") != spec.search_hash("d", "u")


def test_a_checkpoint_of_the_same_store() -> None:
    spec = load_recipe("quickstart", ["model.checkpoint=run:quickstart-0123456789", "storage.root=s3://bucket/store"])
    assert spec.planned_model().model.checkpoint == "s3://bucket/store/runs/quickstart-0123456789/model"
    elsewhere = load_recipe("quickstart", ["model.checkpoint=run:quickstart-0123456789", "storage.root=/tmp/x"])
    assert elsewhere.run_id("c", "u") == spec.run_id("c", "u"), "wherever the store is"


def test_records_and_importances(tmp_path: Path) -> None:
    search = str(tmp_path / "searches" / "some-1")
    space = {"loss.alpha": {"uniform": [0.0, 1.0]}, "fold.order": {"choice": ["in_place", "cycle"]}}
    Path(search).mkdir(parents=True)
    Path(search, "search.json").write_text(json.dumps({"spec": {"search": {"objectives": ["wer"], "space": space}}}))
    orders = [json.dumps(order) for order in ("in_place", "cycle")]
    configs = [{"loss.alpha": number / 12, "fold.order": orders[number % 2]} for number in range(12)]
    records = [
        TrialRecord(i, "trial", f"run-{i}", config, [], "finished", 10, 1.0, {"wer": (i / 12 - 0.5) ** 2}, 1.0)
        for i, config in enumerate(configs)
    ]
    for record in reversed(records):
        write_record(search, record)
    write_record(search, TrialRecord(6, "baseline", "run-b", {"depth": 6}, []))
    assert read_records(search)[:-1] == records
    (found,) = read_searches(str(tmp_path))
    assert (found.search_id, found.objectives, len(found.trials)) == ("some-1", ("wer",), 13)
    weights = importances(found, "wer")
    assert weights["loss.alpha"] > weights["fold.order"]
    assert sum(weights.values()) == pytest.approx(1.0)
    assert importances(Search("x", ("wer",), space, records[:3]), "wer") == {}
    assert importances(found, "bytes") == {}


def test_a_search_taken_over_leaves_its_records_alone(tmp_path: Path) -> None:
    search = str(tmp_path)
    older = SearchAttempt("no corpus", search, claim_submission(search))
    assert older.is_newest()
    newer = SearchAttempt("no corpus", search, claim_submission(search))
    assert not older.is_newest()
    assert newer.is_newest()
    record = TrialRecord(0, "trial", "run", {}, [])
    write_record(search, record)
    with pytest.raises(RunStopped, match="taken over by a newer attempt"):
        run_trial_process(lambda: load_recipe("quickstart-search"), older, record, ("wer",))
    assert read_records(search) == [record]


@pytest.mark.main
def test_of_two_trials_that_are_the_same_run_one_trains(tmp_path: Path) -> None:
    search = str(tmp_path)
    place = SearchAttempt("no corpus", search, claim_submission(search))
    # Of an attempt before: how it ended there is nothing that this attempt's twin may take for its end.
    write_record(search, TrialRecord(0, "trial", "run", {}, [], "failed", error="killed"))
    first, second = (TrialRecord(number, "trial", "run", {}, []) for number in (0, 1))
    assert ended_twin(place, first) is None, "it trains"
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ended_twin, place, second)
        assert not wait([waiting], timeout=1).done
        finished = dataclasses.replace(first, state="finished", step=9, loss=0.5)
        write_record(search, finished)
        assert waiting.result(timeout=20) == finished
    assert ended_twin(place, dataclasses.replace(second, number=2)) == finished, "as whoever comes later"
    write_record(search, dataclasses.replace(first, state="failed"))
    with pytest.raises(UserError, match="the same run as trial-0000, which failed"):
        ended_twin(place, second)
