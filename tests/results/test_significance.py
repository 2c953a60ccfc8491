"""MAPSSWE and the paired bootstrap: cases worked by hand, another implementation, and SCTK where it is installed."""

import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
from scipy import stats

from foldray.results.alignment import align_words, aligned_words
from foldray.results.significance import bootstrap_difference, matched_pairs, segment_errors
from tests.support.paths import AN4
from tests.support.rows import WORDS, misheard

WHERE = f"{os.environ.get('PATH')}:/usr/lib/sctk/bin"  # where Debian keeps them
SCLITE, SC_STATS = (shutil.which(name, path=WHERE) for name in ("sclite", "sc_stats"))


@pytest.mark.parametrize(
    ("first", "second", "segments"),
    [
        ("CCCC", "CCCC", []),
        ("CSCC", "CCCC", [(1, 0)]),
        # One good word between two errors is no border, two are.
        ("SCSCC", "CCCCC", [(2, 0)]),
        ("SCCSC", "CCCCC", [(1, 0), (1, 0)]),
        # Good is what both have right: here no two words are, one after the other.
        ("SCCD", "CCSC", [(2, 1)]),
        ("SCCCS", "CCSCC", [(2, 1)]),
        # An insertion between two good words parts them.
        ("SCICS", "CCCC", [(3, 0)]),
        ("SCCIS", "CCCC", [(1, 0), (2, 0)]),
        ("IICC", "CC", [(2, 0)]),
        ("CCI", "CCII", [(1, 2)]),
        ("DDD", "SSS", [(3, 3)]),
        ("III", "", [(3, 0)]),
    ],
)
def test_segments_by_hand(first: str, second: str, segments: list[tuple[int, int]]) -> None:
    assert segment_errors([(first, second)]) == segments
    assert segment_errors([(second, first)]) == [(b, a) for a, b in segments]
    assert segment_errors([(first, second)] * 3) == [(3 * a, 3 * b) for a, b in segments]


def test_the_test_by_hand() -> None:
    """Differences 2, 1, 0, 1: mean 1, sample deviation sqrt(2/3), z = 1 / (sqrt(2/3) / 2) = sqrt(6)."""
    test = matched_pairs([[("SS", "CC")], [("SC", "CC")], [("SC", "SC")], [("CIC", "CC")]])
    assert (test.segments, test.mean) == (4, 1.0)
    assert test.std_dev == pytest.approx(math.sqrt(2 / 3))
    assert test.z == pytest.approx(math.sqrt(6))
    assert test.p_value == pytest.approx(2 * (1 - statistics.NormalDist().cdf(math.sqrt(6))))
    assert test.significant


@pytest.mark.parametrize(
    ("pairs", "z", "significant"),
    [
        ([], 0.0, False),
        ([("CCC", "CCC")], 0.0, False),
        # Without a deviation nothing is said, as in sc_stats.
        ([("SCC", "CCC")] * 9, 0.0, False),
        ([("SCC", "SCC"), ("CCD", "CCD")], 0.0, False),
        # Differences 1, 1, 0: 0.667 / (0.577 / sqrt(3)), the case in SCTK's own test data.
        ([("S", "C"), ("S", "C"), ("S", "S")], 2.0, True),
        # Differences 1, -1, 1: 0.333 / (1.155 / sqrt(3)) = 0.5.
        ([("S", "C"), ("C", "S"), ("S", "C")], 0.5, False),
    ],
)
def test_statistics_by_hand(pairs: list[tuple[str, str]], z: float, significant: bool) -> None:
    test = matched_pairs([[pair] for pair in pairs])
    assert test.z == pytest.approx(z)
    assert test.significant == significant
    swapped = matched_pairs([[(b, a)] for a, b in pairs])
    assert (swapped.z, swapped.p_value) == (pytest.approx(-z), test.p_value)


def test_different_references_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        matched_pairs([[("CCC", "CC")]])
    with pytest.raises(ValueError, match="zip"):
        matched_pairs([[("CCC", "CCC"), ("CC", "CC")]])


def test_several_pairs_of_systems_are_added_up_segment_by_segment() -> None:
    """Two seeds: a border is where all four are right, and either seed's errors count in its own segment."""
    seeds = [("SCCCC", "CCCCC"), ("CCCCS", "CCCSC")]
    assert segment_errors(seeds[:1]) == [(1, 0)]
    assert segment_errors(seeds[1:]) == [(1, 1)]
    assert segment_errors(seeds) == [(1, 0), (1, 1)]
    assert segment_errors([("SCCCC", "CCCCC"), ("CCSCC", "CCCCC")]) == [(2, 0)], "no two words that all have right"
    pairs = pairs_of(0.2, 0.1, 3)
    once, thrice = matched_pairs([[pair] for pair in pairs]), matched_pairs([[pair] * 3 for pair in pairs])
    assert (thrice.segments, thrice.mean) == (once.segments, pytest.approx(3 * once.mean))
    assert thrice.z == pytest.approx(once.z)


@pytest.mark.parametrize(
    ("reference", "heard", "steps"),
    [
        ("one two three", "one two three", "CCC"),
        ("one two three", "one too three", "CSC"),
        ("one two three", "one three", "CDC"),
        ("one two", "one and two", "CIC"),
        ("one two", "", "DD"),
        ("one", "two three", "SI"),
    ],
)
def test_alignments(reference: str, heard: str, steps: str) -> None:
    found = align_words(reference, heard)
    assert sorted(found) == sorted(steps)
    words = aligned_words(reference, heard, found)
    assert " ".join(said for _, said, _ in words if said) == reference
    assert " ".join(word for _, _, word in words if word) == heard
    assert all((said == word) == (step == "C") for step, said, word in words)


# --- On the sentences of AN4 -----------------------------------------------------------------------


def sentences() -> list[str]:
    """The test sentences of AN4, or as many made up of its vocabulary."""
    if AN4.is_dir():
        return [json.loads(line)["text"].lower() for line in (AN4 / "test.jsonl").read_text().splitlines()]
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(130)]


def pairs_of(rate_a: float, rate_b: float, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [
        (align_words(said, misheard(said, rate_a, rng)), align_words(said, misheard(said, rate_b, rng)))
        for said in sentences()
    ]


def written_otherwise(pairs: list[tuple[str, str]]) -> tuple[list[int], float, float]:
    """The same test by a regular expression over places and scipy: differences, z, p."""
    differences = []
    for pair in pairs:
        columns: list[list[int]] = []
        marks = ""
        sides = [re.findall(r"I*[CSD]|I+$", steps) for steps in pair]
        # Every word with what is put in before it, and a last place for what is put in behind.
        sides = [
            [*(each for each in side if each[-1] != "I"), *([side[-1]] if side and side[-1][-1] == "I" else [""])]
            for side in sides
        ]
        for one, other in zip(*sides, strict=True):
            inserted = [one.count("I"), other.count("I")]
            if any(inserted):
                columns.append(inserted)
                marks += "x"
            if one[-1:] in ("C", "S", "D"):
                wrong = [int(one[-1] != "C"), int(other[-1] != "C")]
                columns.append(wrong)
                marks += "x" if any(wrong) else "g"
        for match in re.finditer(r"x(?:g?x)*", marks):
            totals = [sum(column[side] for column in columns[match.start() : match.end()]) for side in (0, 1)]
            differences.append(totals[0] - totals[1])
    mean = statistics.mean(differences)
    z = mean / (statistics.stdev(differences) / math.sqrt(len(differences)))
    return differences, z, 2 * float(stats.norm.sf(abs(z)))


@pytest.mark.parametrize(("rate_a", "rate_b"), [(0.1, 0.1), (0.1, 0.2), (0.3, 0.25), (0.02, 0.04)])
@pytest.mark.parametrize("seed", range(3))
def test_another_implementation_agrees(rate_a: float, rate_b: float, seed: int) -> None:
    pairs = pairs_of(rate_a, rate_b, seed)
    differences, z, p_value = written_otherwise(pairs)
    assert [a - b for pair in pairs for a, b in segment_errors([pair])] == differences
    test = matched_pairs([[pair] for pair in pairs])
    assert (test.z, test.p_value) == (pytest.approx(z), pytest.approx(p_value))


@pytest.mark.skipif(not SC_STATS, reason="SCTK is not installed (Debian's package sctk)")
@pytest.mark.parametrize(("rate_a", "rate_b"), [(0.1, 0.2), (0.3, 0.25)])
def test_sctk_agrees(rate_a: float, rate_b: float, tmp_path: Path) -> None:
    """Both align for themselves, so no word is put in or lost: there is one best alignment."""
    rng = random.Random(3)
    spoken = [text for text in sentences() if len(text.split()) > 1]
    heard = [[misheard_only(text, rate, rng) for text in spoken] for rate in (rate_a, rate_b)]
    segments, figures, _ = by_sctk(spoken, heard, tmp_path)
    test = matched_pairs([[(align_words(r, a), align_words(r, b))] for r, a, b in zip(spoken, *heard, strict=True)])
    assert test.segments == segments
    assert (test.mean, test.std_dev, test.z) == pytest.approx(figures, abs=6e-4)


@pytest.mark.skipif(not SC_STATS, reason="SCTK is not installed (Debian's package sctk)")
@pytest.mark.parametrize("seed", range(3))
def test_sctk_agrees_on_its_own_alignments(seed: int, tmp_path: Path) -> None:
    """With words put in and lost, of which there may be several best alignments: both use sclite's."""
    rng = random.Random(seed)
    spoken = [text for text in sentences() if len(text.split()) > 1]
    heard = [[misheard(text, rate, rng) or "nothing" for text in spoken] for rate in (0.15, 0.3)]
    segments, figures, aligned = by_sctk(spoken, heard, tmp_path)
    assert {step for side in aligned for steps in side for step in steps} == set("CSDI")
    test = matched_pairs([[pair] for pair in zip(*aligned, strict=True)])
    assert test.segments == segments
    assert (test.mean, test.std_dev, test.z) == pytest.approx(figures, abs=6e-4)


def by_sctk(
    spoken: list[str], heard: list[list[str]], folder: Path
) -> tuple[int, tuple[float, float, float], list[list[str]]]:
    """What sc_stats says of two sides: segments; mean, deviation and z; and sclite's alignments."""
    lines = lambda texts: "".join(f"{text} (s{i % 7}-{i:04d})\n" for i, text in enumerate(texts))  # noqa: E731
    (folder / "ref").write_text(lines(spoken))
    sgml, aligned = "", []
    for name, texts in zip("ab", heard, strict=True):
        (folder / name).write_text(lines(texts))
        command = [SCLITE, "-r", "ref", "trn", "-h", name, "trn", "-i", "spu_id", "-o", "sgml", "stdout"]
        said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
        paths = re.findall(r'<PATH id="\(\w+-(\d+)\)"[^>]*>\s*(.*?)\s*</PATH>', said, re.DOTALL)
        steps = {int(i): "".join(word[0] for word in path.split(":")) for i, path in paths}
        aligned.append([steps[i] for i in range(len(spoken))])
        sgml += said
    compare = [SC_STATS, "-p", "-t", "mapsswe", "-v", "-n", "-"]
    said = subprocess.run(compare, input=sgml.encode(), cwd=folder, check=True, capture_output=True).stdout
    report = said.decode(errors="replace")  # it prints what it finds in memory behind some names
    found = re.search(r"# segs: (\d+)\).*?mean: (-?[\d.]+)\) \(std dev: ([\d.]+)\) \(Z Stat: (-?[\d.]+)\)", report)
    assert found, report
    return int(found[1]), (float(found[2]), float(found[3]), float(found[4])), aligned


def misheard_only(reference: str, rate: float, rng: random.Random) -> str:
    """Words changed to some that stand nowhere else."""
    return " ".join("other" if rng.random() < rate else word for word in reference.split())


# --- Bootstrap -------------------------------------------------------------------------------------


def test_the_interval_of_equals_is_nothing() -> None:
    assert bootstrap_difference([(1, 1), (0, 0), (2, 2)], [5, 4, 3]) == (0.0, 0.0)


def test_the_interval_is_scipys() -> None:
    import numpy as np

    rng = random.Random(0)
    errors = [(rng.randint(0, 3), rng.randint(0, 2)) for _ in range(200)]
    words = [rng.randint(3, 9) for _ in range(200)]
    low, high = bootstrap_difference(errors, words)
    a, b, w = np.array([e[0] for e in errors]), np.array([e[1] for e in errors]), np.array(words)
    theirs = stats.bootstrap(
        (a, b, w), lambda x, y, n, axis: (x.sum(axis) - y.sum(axis)) / n.sum(axis), paired=True, method="percentile",
        n_resamples=10_000, rng=1, vectorized=True,
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=3e-3)
    assert low < (a.sum() - b.sum()) / w.sum() < high
    assert bootstrap_difference(errors, words) == (low, high), "the same numbers every time"
