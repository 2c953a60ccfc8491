"""Two runs side by side: every depth of one against every depth of the other, on the same utterances."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foldray.errors import UserError
from foldray.results.rows import read_hypotheses, read_rows
from foldray.results.significance import bootstrap_difference, matched_pairs

Place = tuple[str, str, str]
Said = dict[int, dict[str, dict[str, Any]]]
"""Hypotheses of each depth by utterance id."""
Pair = tuple[Said, Said]


def compare_runs(store: str, run_a: str, run_b: str) -> list[dict[str, Any]]:
    """Every pair of depths on every test set both were scored on: WERs, their difference (a less b), its bootstrap
    interval, and the matched-pairs test. A run against itself: each pair of its depths once.

    Several runs on either side, joined by commas, are compared as one: the first with the first, the second with the
    second. Seeds share their test sets; where no test set is shared by all, as in a cross-validation, those of all
    pairs are one. Raises UserError.
    """
    sides = [names.split(",") for names in (run_a, run_b)]
    if not all(sides[0] + sides[1]):  # an empty name would be every run of the store
        raise UserError("compare", f"'{run_a}' and '{run_b}' name runs; join several by commas, with nothing between")
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(str(len(side)) for side in sides)
        raise UserError("compare", f"runs are compared one by one, so that both sides need as many; these are {counts}")
    said = {run_id: said_by_place(store, run_id) for run_id in dict.fromkeys(sides[0] + sides[1])}
    return [
        {**dict(zip(("corpus", "split", "decoding"), place, strict=True)), "depth_a": a, "depth_b": b}
        | compare_hypotheses([(one[a], other[b]) for one, other in pairs], f"{run_a} and {run_b} on {place[0]}")
        for place, pairs in _pooled(said, list(zip(*sides, strict=True))).items()
        for a in sorted(set.intersection(*({*one} for one, _ in pairs)))
        for b in sorted(set.intersection(*({*other} for _, other in pairs)))
        if run_a != run_b or a < b
    ]


def _pooled(said: dict[str, dict[Place, Said]], couples: list[tuple[str, str]]) -> dict[Place, list[Pair]]:
    """What is compared as one, by test set: what each couple of runs said."""
    places = [{*said[a]} & {*said[b]} for a, b in couples]
    for (a, b), shared in zip(couples, places, strict=True):
        if not shared:
            raise UserError(b, f"was scored on no test set that {a} was scored on; `foldray evaluate` scores more")
    if everywhere := set.intersection(*places):
        return {place: [(said[a][place], said[b][place]) for a, b in couples] for place in sorted(everywhere)}
    pooled: dict[Place, list[Pair]] = {}
    for kind in sorted(set.intersection(*({place[1:] for place in shared} for shared in places))):
        own = [[place for place in shared if place[1:] == kind] for shared in places]
        for (a, b), these in zip(couples, own, strict=True):
            if len(these) > 1:
                raise UserError(
                    "compare", f"{a} and {b} were scored on several corpora ({kind[0]}); compare one by one"
                )
        corpora = ", ".join(dict.fromkeys(place[0] for (place,) in own))
        pooled[corpora, *kind] = [
            (said[a][place], said[b][place]) for (a, b), (place,) in zip(couples, own, strict=True)
        ]
    return pooled


def said_by_place(store: str, run_id: str) -> dict[Place, Said]:
    """The hypotheses of a run's depths, by test set and decoding: of the last step that was scored, when it was scored
    last. Raises UserError."""
    rows = sorted(read_rows(store, run_id), key=lambda row: (row["step"], row["created"]))
    newest = {(row["corpus"], row["split"], row["decoding"], row["depth"]): row["created"] for row in rows}
    if not newest:
        raise UserError(
            run_id, f"has no results in {store}: score it with `foldray evaluate`, or see what is scored with `ls`"
        )
    places: dict[Place, Said] = {}
    for each in read_hypotheses(store, run_id):
        place, depth = (each["corpus"], each["split"], each["decoding"]), each["depth"]
        if newest.get((*place, depth)) == each["created"]:
            places.setdefault(place, {}).setdefault(depth, {})[each["id"]] = each
    return places


def compare_hypotheses(couples: Sequence[tuple[dict[str, Any], dict[str, Any]]], what: str) -> dict[str, Any]:
    """One pair of depths: what either said of the same utterances, by id, as often as there are couples.

    An utterance that several couples have is drawn with all of them in the bootstrap. Raises UserError where references
    are not the same.
    """
    pairs = []
    for said_a, said_b in couples:
        ids = sorted(said_a)
        if ids != sorted(said_b) or any(said_a[i]["reference"] != said_b[i]["reference"] for i in ids):
            raise UserError(what, "were scored against different references; evaluate both on the same prepared corpus")
        pairs += [(said_a[i], said_b[i]) for i in ids]
    counts: dict[tuple[str, str], NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, dtype=np.int64))
    for a, b in pairs:
        counts[a["corpus"], a["id"]] += (_errors(a), _errors(b), a["num_words"])
    errors_a, errors_b, words = np.stack(list(counts.values()), axis=1).tolist()
    test = matched_pairs([(a["alignment"], b["alignment"]) for a, b in pairs])
    low, high = bootstrap_difference(list(zip(errors_a, errors_b, strict=True)), words)
    wer_a, wer_b = sum(errors_a) / sum(words), sum(errors_b) / sum(words)
    return {
        "wer_a": wer_a,
        "wer_b": wer_b,
        "difference": wer_a - wer_b,
        "low": low,
        "high": high,
        "segments": test.segments,
        "z": test.z,
        "p_value": test.p_value,
        "significant": test.significant,
        "num_utterances": len(counts),
        "num_words": sum(words),
    }


def _errors(said: dict[str, Any]) -> int:
    return int(said["substitutions"] + said["deletions"] + said["insertions"])
