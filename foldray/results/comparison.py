"""Two runs compared: every depth of one with every depth of the other, on the same utterances."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from foldray.errors import UserError
from foldray.results.paired import Comparison, compare_hypotheses
from foldray.results.reader import read_hypotheses
from foldray.results.rows import Hypothesis


class TestSet(NamedTuple):
    """A test set and how it was decoded."""

    corpus: str
    split: str
    decoding: str


HypothesesByDepth = dict[int, dict[str, Hypothesis]]


class DepthPair(Comparison):
    """A depth of run A compared with a depth of run B on one test set."""

    corpus: str
    split: str
    decoding: str
    depth_a: int
    depth_b: int


def compare_runs(
    store: str,
    run_a: str,
    run_b: str,
    filters: Sequence[str] = (),
    *,
    margin: float | None = None,
    by_speaker: bool = False,
) -> list[DepthPair]:
    """Compare every pair of depths on every test set that both runs were scored on.

    A run compared with itself gives each pair of its depths once. Several runs on either side, joined by commas, are
    compared as one, couple by couple: random seeds, or parts of a cross-validation with a test set for each couple.

    Args:
        filters: such as `split=test` or `corpus=A,B`, to choose test sets.
        margin: the largest difference that counts as no loss (0.01 is one point), for `within_margin` of each pair.
        by_speaker: resample whole speakers, whose utterances are not independent.

    Raises:
        UserError: if the runs have no test set or depths to compare.

    Example:
        >>> compare_runs("foldray-store", "an4-fold-6-12-eb2adab9db", "an4-12-ae004d829b", ["split=test"])
    """
    couples = _couples(run_a, run_b)
    scored = _scored(store, couples, [_wanted(given) for given in filters])
    pairs: list[DepthPair] = [
        {
            **compare_hypotheses(
                [(one[a], other[b]) for one, other in pooled],
                f"{run_a} and {run_b} on {test_set.corpus}",
                margin=margin,
                by_speaker=by_speaker,
            ),
            "corpus": test_set.corpus,
            "split": test_set.split,
            "decoding": test_set.decoding,
            "depth_a": a,
            "depth_b": b,
        }
        for test_set, pooled in _pooled(scored, couples, filters).items()
        for a in sorted(set.intersection(*({*one} for one, _ in pooled)))
        for b in sorted(set.intersection(*({*other} for _, other in pooled)))
        if run_a != run_b or a < b
    ]
    if not pairs:
        raise _no_pairs(scored)
    return pairs


def _scored(
    store: str, couples: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, list[str]]]
) -> dict[str, dict[TestSet, HypothesesByDepth]]:
    run_ids = dict.fromkeys(run_id for side in zip(*couples, strict=True) for run_id in side)
    return {run_id: _selected(hypotheses_by_test_set(store, run_id), wanted) for run_id in run_ids}


def _selected(
    by_test_set: Mapping[TestSet, HypothesesByDepth], wanted: Sequence[tuple[str, list[str]]]
) -> dict[TestSet, HypothesesByDepth]:
    return {
        test_set: depths
        for test_set, depths in by_test_set.items()
        if all(getattr(test_set, name) in values for name, values in wanted)
    }


def _no_pairs(scored: Mapping[str, Mapping[TestSet, HypothesesByDepth]]) -> UserError:
    depths = {run_id: sorted({depth for each in scored[run_id].values() for depth in each}) for run_id in scored}
    listed = "; ".join(f"{run_id} at {', '.join(map(str, each))}" for run_id, each in depths.items())
    return UserError("compare", f"no two depths were scored in all these runs ({listed})")


def _couples(run_a: str, run_b: str) -> list[tuple[str, str]]:
    sides = [names.split(",") for names in (run_a, run_b)]
    if not all(sides[0] + sides[1]):  # an empty name would select every run of the store
        raise UserError("compare", f"'{run_a}' and '{run_b}' contain an empty run id; join several by single commas")
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(str(len(side)) for side in sides)
        raise UserError("compare", f"runs are compared in couples; give both sides equally many, not {counts}")
    return [*zip(*sides, strict=True)]


def _wanted(given: str) -> tuple[str, list[str]]:
    name, is_one, values = given.partition("=")
    if not is_one or name not in TestSet._fields:
        raise UserError(given, "is not a filter of compare; write split=test, corpus=A,B or decoding=ctc")
    return name, values.split(",")


Couple = tuple[HypothesesByDepth, HypothesesByDepth]


def _pooled(
    scored: Mapping[str, Mapping[TestSet, HypothesesByDepth]],
    couples: Sequence[tuple[str, str]],
    filters: Sequence[str],
) -> dict[TestSet, list[Couple]]:
    """The hypotheses of each couple of runs by test set, those that each couple has for itself as one test set."""
    shared = [{*scored[a]} & {*scored[b]} for a, b in couples]
    for (a, b), own in zip(couples, shared, strict=True):
        if not own:
            chosen = f" ({' '.join(filters)})" if filters else ""
            fix = "`ls` lists what was scored" if filters else "score them on the same one with `foldray evaluate`"
            raise UserError(b, f"was scored on no test set that {a} was scored on{chosen}; {fix}")

    def of_couples(test_sets: Sequence[TestSet]) -> list[Couple]:
        return [(scored[a][each], scored[b][each]) for (a, b), each in zip(couples, test_sets, strict=True)]

    everywhere = set.intersection(*shared)
    pooled = {test_set: of_couples([test_set] * len(couples)) for test_set in sorted(everywhere)}
    ambiguous: set[str] = set()
    for split, decoding in sorted(set.intersection(*({each[1:] for each in own} for own in shared))):
        left = [[each for each in own - everywhere if each[1:] == (split, decoding)] for own in shared]
        if all(left):
            ambiguous |= {each.corpus for own in left for each in own if len(own) > 1}
        if all(len(own) == 1 for own in left):
            corpora = ", ".join(dict.fromkeys(each.corpus for (each,) in left))
            pooled[TestSet(corpora, split, decoding)] = of_couples([each for (each,) in left])
    if ambiguous:
        names = ",".join(sorted(ambiguous))
        raise UserError(
            "compare",
            f"runs were scored on several corpora; name those to compare, one for each pair of runs: corpus={names}",
        )
    if not pooled:
        raise UserError(
            "compare",
            "no split and decoding was scored for all of these runs; score them on one split with `foldray evaluate`",
        )
    return pooled


def hypotheses_by_test_set(store: str, run_id: str) -> dict[TestSet, HypothesesByDepth]:
    """Hypotheses of a run's depths, of the last step scored on each test set. Raises UserError if there are none."""
    found: dict[TestSet, HypothesesByDepth] = {}
    for each in read_hypotheses(store, run_id):
        test_set = TestSet(each["corpus"], each["split"], each["decoding"])
        found.setdefault(test_set, {}).setdefault(each["depth"], {})[each["id"]] = each
    if not found:
        raise UserError(
            run_id, f"has no results in {store}: score it with `foldray evaluate`; `ls` lists what is there"
        )
    return found
