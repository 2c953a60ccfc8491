"""The docs name what exists: links, files, commands, benchmarks and pipelines."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks import BENCHMARKS
from foldray.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "cluster" / "README.md"]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub derives them from its headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if not target.startswith("http"):
            linked = page.parent / target if target else page
            assert linked.exists(), target
            assert not anchor or anchor in headings(linked), f"{target}#{anchor}"


def test_paths_of_code_exist(page: Path) -> None:
    named = re.findall(r"(?<![\w./<])([a-z](?:\w|/)+/\w+\.py)\b", page.read_text())
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "foldray" / path).exists(), path


def test_commands_exist(page: Path) -> None:
    text = page.read_text()
    fenced = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:^|\$\(|&& |`)foldray ([a-z]+)", fenced, re.MULTILINE)) <= known
    assert set(re.findall(r"`foldray ([a-z]+)\b", text)) <= known
    assert set(re.findall(r"python -m benchmarks ([a-z-]+)", text)) <= set(BENCHMARKS)
    pipelines = {file.stem for file in ROOT.glob("pipelines/*.py")}
    assert set(re.findall(r"python -m pipelines\.([a-z]+)", text)) <= pipelines
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", fenced, re.MULTILINE)) <= targets
    assert set(re.findall(r"`make ([a-z]+)`", text)) <= targets


def test_the_glossary_is_sorted_and_names_what_the_code_has() -> None:
    rows = re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", (ROOT / "docs" / "GLOSSARY.md").read_text(), re.MULTILINE)[1:]
    terms = [term.lower() for term, _ in rows]
    assert terms == sorted(terms)
    assert len(terms) <= 40
    code = "\n".join(file.read_text() for file in ROOT.glob("foldray/**/*.py"))
    names = [name for _, cell in rows for name in re.findall(r"`(\w+)(?:\(\))?`", cell)]
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
