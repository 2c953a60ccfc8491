"""The report in a browser: nothing overflows, nothing complains, and what is plotted are the store's numbers."""

import base64
import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly
import pytest

from foldray.errors import UserError
from foldray.results.comparison import compare_runs
from foldray.results.metrics import write_metrics
from foldray.results.plots import depth_figure
from foldray.results.query import list_rows, pareto
from foldray.results.report import write_report
from foldray.results.rows import write_rows
from foldray.results.searches import TrialRecord, write_record
from tests.support.rows import WORDS, at, evaluation

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed (Debian's package chromium)")
WIDTHS = (1280, 390)
ODD = 'odd"><img src=q onerror=alert(1)>'
"""Names of runs come from whoever may write to the store."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fold of three depths, another, baselines of two, a search, metrics; the second baseline is far better."""
    store = str(tmp_path_factory.mktemp("store"))
    rng = random.Random(0)
    said = [" ".join(rng.choices(WORDS, k=rng.randint(2, 8))) for _ in range(150)]
    runs = {
        "fold-a1": ("fold", {3: 0.14, 4: 0.1, 6: 0.08}), "fold-b2": ("fold", {3: 0.3, 6: 0.3}),
        ODD: ("fold", {3: 0.6, 6: 0.6}), "alone-3": ("baseline", {3: 0.14}), "alone-6": ("baseline", {6: 0.01}),
    }  # fmt: skip
    for number, (run_id, (kind, rates)) in enumerate(runs.items()):
        facts = {"kind": kind, "created": at(number), "step": 40, "num_layers": min(rates)}
        made = [
            evaluation(
                run_id, said, rate, depth=depth, path=" ".join(map(str, range(depth))),
                macs_per_audio_second=depth * 1e8,
                bytes_stored=(3 if kind == "fold" else depth) * 1_000_000, **facts,
            )
            for depth, rate in rates.items()
        ]  # fmt: skip
        write_rows(store, [each[0] for each in made], [h for each in made for h in each[1]])
        run = f"{store}/runs/{run_id}"
        losses = [
            {
                "step": step, "ctc": {str(d): 3 / step for d in rates}, "kl": {str(d): 0.5 / step for d in rates},
                "audio_seconds": 16.0, "padding": 0.05, "seconds": 0.1,
            }
            for step in range(1, 41)
        ]  # fmt: skip
        write_metrics(run, "0001-0001", losses)
        Path(run, "spec.json").write_text(json.dumps({"name": run_id, "seed": 0}))
        Path(run, "run.json").write_text(json.dumps({"corpus_id": "an4-1", "versions": {"torch": "2"}}))
    # What the page compares is neither of these: another test set, and an earlier step.
    for split, step, minute in (("other", 40, -10), ("test", 20, -5)):
        early = [
            evaluation("fold-a1", said, 0.4, depth=depth, split=split, step=step, created=at(minute), num_layers=3)
            for depth in (3, 4, 6)
        ]
        write_rows(store, [each[0] for each in early], [h for each in early for h in each[1]])
    _write_search(f"{store}/searches/fold-0123456789")
    return store


def _write_search(search: str) -> None:
    Path(search).mkdir(parents=True)
    asked = {
        "objectives": ["wer", "bytes"],
        "space": {"loss.alpha": {"uniform": [0.0, 1.0]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}},
    }
    Path(search, "search.json").write_text(json.dumps({"spec": {"search": asked}}))
    for number in range(8):
        config = {"loss.alpha": number / 8, "optim.lr": 1e-3 * (1 + number % 3)}
        overrides = [f"{name}={value:.3g}" for name, value in config.items()]
        objectives = {"wer": 0.2 - 0.01 * number, "bytes": 3e6}
        state = "stopped" if number == 3 else "finished"
        write_record(
            search, TrialRecord(number, "trial", "fold-a1", config, overrides, state, 40, 1.0, objectives, 0.5)
        )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(store: str) -> str:
    return write_report(store)


def test_no_two_of_many_folds_look_alike() -> None:
    figure = depth_figure({f"fold-{number}": [] for number in range(25)}, [], {})
    dashes = [trace.line.dash for trace in figure.data]
    assert dashes == 10 * ["solid"] + 10 * ["dash"] + 5 * ["dot"], "plotly gives ten colours, in turn"


@pytest.mark.main
def test_depths_that_were_not_trained_are_hollow_points_of_their_folds_line(tmp_path: Path) -> None:
    store, said = str(tmp_path), ["turn on the light"] * 4
    made = [
        evaluation("fold-a1", said, 0.5, depth=depth, trained=depth != 4, num_layers=3, created=at(0))
        for depth in (3, 4, 6)
    ]
    write_rows(store, [each[0] for each in made], [h for each in made for h in each[1]])
    figure = depth_figure({"fold-a1": list_rows(store, [], "depth")[0]}, [], {})
    assert (figure.data[0].x, figure.data[0].marker.symbol) == ((3, 4, 6), ("circle", "circle-open", "circle"))
    with pytest.raises(UserError, match=r"has no results that match depth>9"):
        write_report(store, filters=["depth>9"])
    shallow = Path(write_report(store, str(tmp_path / "shallow"), ["depth<4"])).read_text()
    assert "open circles" not in shallow
    assert '"fold-a1",6' not in shallow
    text = Path(write_report(store)).read_text()
    assert text.count('"circle-open"') - plotly.offline.get_plotlyjs().count('"circle-open"') == 1
    assert "open circles: depths that were not trained" in text
    pareto = text[text.index('id="pareto"') :][: text.index('id="depths"') - text.index('id="pareto"')]
    assert "depth 3" in text
    assert '"fold-a1",3' in pareto
    assert '"fold-a1",4' not in pareto


@pytest.mark.main
def test_it_is_one_file_that_needs_no_other(page: str) -> None:
    text = Path(page).read_text()
    begin, end = text.index("<script>"), text.index("</script>")
    text = text[:begin] + text[end:]  # plotly.js knows some addresses that it does not ask here
    assert not [piece for piece in ('src="http', "src='http", 'href="http', "url(http", "@import") if piece in text]
    assert "<img src=q" not in text


def test_its_policy_allows_no_script_but_its_own(page: str) -> None:
    text = Path(page).read_text()
    policy = text.split('http-equiv="Content-Security-Policy" content="', 1)[1].split('"', 1)[0].replace("&#39;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data: blob:")
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in scripts]
    assert len(scripts) > 4
    assert set(rules["script-src"].split(" ")) == set(digests)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def opened(request: pytest.FixtureRequest, browser: Any, page: str) -> Iterator[Any]:
    """The page at a desk's and a phone's width, without a network; complaints fail the test."""
    context = browser.new_context(viewport={"width": request.param, "height": 900}, offline=True)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(f"file://{page}")
    tab.wait_for_selector("#pareto .main-svg")
    yield tab
    context.close()
    assert complaints == []


@pytest.mark.main
@NEEDS_CHROMIUM
def test_nothing_overflows(opened: Any, tmp_path: Path) -> None:
    width = opened.viewport_size["width"]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    beyond = opened.evaluate(
        """width => [...document.querySelectorAll('body > *, .main-svg')].filter(
            each => each.getBoundingClientRect().right > width + 1).map(each => each.outerHTML.slice(0, 100))""",
        width,
    )
    assert beyond == []
    opened.screenshot(path=str(tmp_path / f"{width}.png"), full_page=True)
    assert (tmp_path / f"{width}.png").stat().st_size > 20_000


def traces(tab: Any, name: str) -> list[dict[str, Any]]:
    """What a plot holds, as plotly has it in the page."""
    wanted = "each => ({name: each.name, x: [...each.x], y: [...each.y], text: each.text, visible: each.visible})"
    found: list[dict[str, Any]] = tab.evaluate(f"name => document.getElementById(name).data.map({wanted})", name)
    return found


@pytest.mark.main
@NEEDS_CHROMIUM
def test_folds_baselines_and_the_front_are_plotted_from_the_rows(opened: Any, store: str) -> None:
    rows = list_rows(store, ["split=test", "step=40"], "depth")[0]
    fold, alone, front = traces(opened, "pareto")[:3]
    for trace, kind in ((fold, "fold"), (alone, "baseline")):
        wanted = sorted((r["bytes_stored"] / 1e6, 100 * r["wer"]) for r in rows if r["kind"] == kind)
        drawn = sorted(zip(trace["x"], trace["y"], strict=True))
        assert np.array(drawn) == pytest.approx(np.array(wanted))
    best = sorted(
        {(r["bytes_stored"] / 1e6, 100 * r["wer"]) for r in pareto(store, ("bytes", "wer"), ["split=test", "step=40"])}
    )
    assert np.array([*zip(front["x"], front["y"], strict=True)]) == pytest.approx(np.array(best))


@pytest.mark.main
@NEEDS_CHROMIUM
def test_depths_are_plotted_from_the_rows_and_marked_where_significant(opened: Any, store: str) -> None:
    rows = list_rows(store, ["split=test", "step=40"], "depth")[0]
    lines = {trace["name"]: trace for trace in traces(opened, "depths")}
    for run_id in ("fold-a1", "fold-b2"):
        mine = [r for r in rows if r["run_id"] == run_id]
        assert lines[run_id]["x"] == [r["depth"] for r in mine]
        assert lines[run_id]["y"] == pytest.approx([100 * r["wer"] for r in mine])
    assert sorted(lines["trained by itself"]["x"]) == [3, 6]
    significant = {
        pair["depth_a"]
        for alone in ("alone-3", "alone-6")
        for pair in compare_runs(store, "fold-a1", alone)
        if pair["depth_a"] == pair["depth_b"] and pair["significant"]
    }
    assert significant == {6}
    marked = {depth for depth, text in zip(lines["fold-a1"]["x"], lines["fold-a1"]["text"], strict=True) if text}
    assert marked == significant


@pytest.mark.main
@NEEDS_CHROMIUM
def test_searches_and_losses_are_plotted_from_their_records(opened: Any) -> None:
    finished, stopped, so_far = traces(opened, "history-fold-0123456789-wer")
    assert (finished["x"], stopped["x"]) == ([0, 1, 2, 4, 5, 6, 7], [3])
    assert finished["y"] == pytest.approx([20, 19, 18, 16, 15, 14, 13])
    assert so_far["y"] == pytest.approx([20, 19, 18, 16, 15, 14, 13])
    (bars,) = traces(opened, "importance-fold-0123456789-wer")
    assert bars["y"][0] == "loss.alpha"
    curve = next(trace for trace in traces(opened, "curves-fold-a1") if trace["name"] == "CTC, depth 3")
    assert curve["x"] == list(range(1, 41))
    assert curve["y"][0] == pytest.approx(3.0)


@pytest.mark.main
@NEEDS_CHROMIUM
def test_buttons_change_what_wer_is_held_against(opened: Any) -> None:
    assert [trace["visible"] for trace in traces(opened, "pareto")] == [True] * 3 + [False] * 6
    opened.locator("#pareto .updatemenu-button").nth(1).click()
    opened.wait_for_function("document.getElementById('pareto').data[3].visible === true")
    assert [trace["visible"] for trace in traces(opened, "pareto")] == [False] * 3 + [True] * 3 + [False] * 3
    assert opened.locator("#pareto .xtitle").text_content() == "GMACs per second of audio"


@pytest.mark.main
@NEEDS_CHROMIUM
def test_the_text_says_the_same(opened: Any, store: str) -> None:
    rows = {(r["run_id"], r["depth"]): r for r in list_rows(store, ["split=test", "step=40"])[0]}
    assert opened.locator("h1").text_content() == "fold-a1", "the best fold comes first"
    headline = opened.locator("#headline").text_content()
    for depth in (3, 4, 6):
        row = rows["fold-a1", depth]
        assert f"{row['wer']:.1%} ({row['cer']:.1%}) at depth {depth}" in headline
    verdicts = opened.locator(".verdict").all_text_contents()
    (three,) = (p for p in compare_runs(store, "fold-a1", "alone-3") if p["depth_a"] == 3)
    (six,) = (p for p in compare_runs(store, "fold-a1", "alone-6") if p["depth_a"] == 6)
    for text, pair, baseline in zip(verdicts, (three, six), ("alone-3", "alone-6"), strict=False):
        assert f"{pair['difference']:+.2%} WER against {baseline}" in text
        p_value = f"p = {pair['p_value']:.3f}" if pair["p_value"] >= 0.001 else "p < 0.001"
        assert f"{p_value}): {'significant' if pair['significant'] else 'not significant'}." in text
    assert [len(verdicts), "best of 3 on this very test set" in verdicts[-1]] == [3, True]
    rows_of = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    shown = opened.locator("table.rows tr").evaluate_all(rows_of)
    for (_, depth), row in rows.items():
        assert any(cells[:2] == [str(depth), f"{100 * row['wer']:.1f} %"] for cells in shown), row
    compared = [cells for cells in shown if "p =" in cells[-1] or "p <" in cells[-1]]
    wers = [
        (depth, f"{100 * rows[run_id, depth]['wer']:.1f} %")
        for run_id in ("fold-a1", "fold-b2", ODD)
        for depth in (3, 6)
    ]
    assert sorted((int(cells[0]), cells[1]) for cells in compared) == sorted(wers), "no other test set, no earlier step"
    trials = opened.locator("table.trials tr").evaluate_all(rows_of)
    assert [cells[4:6] for cells in trials[1:]] == [[f"{20 - number:.1f}%", "3.00 M"] for number in range(8)]
    assert "an4-1" in opened.locator("body").text_content()


@pytest.mark.main
@NEEDS_CHROMIUM
def test_errors_are_aligned_word_by_word(opened: Any, store: str) -> None:
    from foldray.results.reader import read_hypotheses

    heard = {
        h["id"]: h for h in read_hypotheses(store, "fold-a1") if (h["depth"], h["split"], h["step"]) == (6, "test", 40)
    }
    first = opened.locator(".example").first
    entry = heard[first.locator("> .soft").text_content()]
    words = first.locator("> div").nth(3)  # the reference, then depths 3, 4, 6
    for step, name in (("S", "substitutions"), ("D", "deletions"), ("I", "insertions")):
        assert words.locator(f".{step}").count() == entry[name]
    assert sum(entry[name] for name in ("substitutions", "deletions", "insertions")) > 0


def test_runs_that_have_a_decoder_only_are_reported(tmp_path: Path) -> None:
    said = ["one two", "three four"]
    made = [
        evaluation("whisper-1", said, 0.5, depth=depth, num_layers=3, step=4, decoding="attention", created=at(1))
        for depth in (3, 4)
    ]
    write_rows(str(tmp_path), [each[0] for each in made], [h for each in made for h in each[1]])
    page = Path(write_report(str(tmp_path))).read_text()
    assert "whisper-1" in page
    for row, _ in made:
        assert f"{row['wer']:.1%} ({row['cer']:.1%}) at depth {row['depth']}" in page
