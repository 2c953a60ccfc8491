"""Cards of models whose corpora, recipes and runs have the names of strangers."""

from pathlib import PurePosixPath

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from foldray.errors import UserError
from foldray.models.hub_license import License
from foldray.results.hub_results import eval_files, parse_benchmarks
from foldray.results.markdown import code
from foldray.results.model_card import MOST_ROWS, Cost, ModelFacts, model_card
from tests.support.rows import row

HOSTILE = [
    "a|b",
    "`tick` ``two``",
    "<script>alert(1)</script>",
    "![x](http://example.com/pixel.png) http://example.com www.example.com",
    "a\n---\nlicense: mit\n---\n# Mine",
    "{{ facts.license.id }} {% for x in y %}",
    "*bold* _it_ \\",
    "'\"#: [x]: - !!python/object:os.system",
    "\u202eright\u200bto left\x1b[31m",
    "../../etc/passwd",
    "x" * 5000,
    " ",
]
COSTS = [Cost(2, 10, 10, 40, 1e6), Cost(4, 10, 20, 40, 2e6)]
FACTS = ModelFacts("org/fold", "parakeet", 2, COSTS, True, License("mit"), origin={"recipe": "an4", "run": "an4-1"})
MARKDOWN = MarkdownIt("commonmark").enable("table")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_the_names_of_strangers_format_nothing(name: str) -> None:
    facts = ModelFacts(**{**vars(FACTS), "origin": {"recipe": name, "run": name}})
    text = model_card(facts, [row(corpus=name, split=name, decoding=name, language=name, device=name)])
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.eval_results[0].dataset_name == name
    plain = model_card(FACTS, [row(corpus="c", split="s", decoding="ctc", device="cpu")])
    html, expected = (MARKDOWN.render(ModelCard(each).text) for each in (text, plain))
    for tag in ("<script", "<img", "<h1", "<h2", "<a ", "<strong", "<em", "<pre", "<hr"):
        assert html.count(tag) == expected.count(tag), tag
    assert html.count("<td") == expected.count("<td"), "no cell is split"
    assert "\u202e" not in card.text
    assert "\x1b" not in card.text
    (file,) = eval_files([row(corpus=name, split=name)], "https://hub/org/fold", {}).items()
    assert PurePosixPath(file[0]).parent.as_posix() == ".eval_results"
    (entry,) = yaml.safe_load(file[1])
    assert entry["value"] == 10.0


@pytest.mark.parametrize(("text", "shown"), [("a|b", "`a\\|b`"), ("", "-"), ("a`b", "`` a`b ``"), ("``", "``` `` ```")])
def test_a_code_span_is_longer_than_its_backticks(text: str, shown: str) -> None:
    assert code(text) == shown


def test_rows_beyond_the_most_are_counted() -> None:
    rows = [row(depth=2, corpus=f"c-{number}") for number in range(MOST_ROWS + 5)]
    text = model_card(FACTS, rows)
    assert "\n5 more result rows are left out.\n" in text
    assert text.count("\n| 2 | `c-") == MOST_ROWS
    assert text.count("\n| 4 | - |") == 1, "the depth without rows has its costs"


def test_benchmarks_are_named_by_split() -> None:
    rows = [row(split="test", decoding="ctc"), row(split="other")]
    named = parse_benchmarks(["test=org/bench:clean", "other=org/bench:other"])
    loaded = [yaml.safe_load(text)[0]["dataset"] for text in eval_files(rows, "https://hub/x", named).values()]
    assert loaded == [{"id": "org/bench", "task_id": "clean"}, {"id": "org/bench", "task_id": "other"}]


def test_the_split_of_one_of_two_corpora_is_named_with_it() -> None:
    rows = [row(corpus="an4-1"), row(corpus="libri-2")]
    with pytest.raises(UserError, match=r"an4-1 test, libri-2 test; write CORPUS/SPLIT=… for that of one corpus"):
        eval_files(rows, "https://hub/x", parse_benchmarks(["test=org/bench:clean"]))
    named = parse_benchmarks(["libri-2/test=org/bench:clean"])
    loaded = [yaml.safe_load(text)[0]["dataset"]["id"] for text in eval_files(rows, "https://hub/x", named).values()]
    assert loaded == ["an4-1", "org/bench"]


def test_names_that_are_cut_keep_files_apart() -> None:
    search = "beam-50:lm-0123456789abcdef-0.5-1.5"
    ways = [search, f"{search}:words-1", f"{search}:words-2"]
    rows = [row(decoding=way, depth=depth) for way in ways for depth in (2, 4)]
    rows += [row(corpus="c" * 90, split=split) for split in ("s" * 50, "s" * 51)]
    assert len(eval_files(rows, "https://hub/x", {})) == len(rows)
    assert [*eval_files([row()], "https://hub/x", {})] == [".eval_results/foldray-an4-1-test-ctc-depth-4.yaml"]
