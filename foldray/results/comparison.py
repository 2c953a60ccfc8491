"""Two runs side by side: every depth of one against every depth of the other, on the same utterances."""

from typing import Any

from foldray.errors import UserError
from foldray.results.rows import read_hypotheses, read_rows
from foldray.results.significance import bootstrap_difference, matched_pairs

Place = tuple[str, str, str]
Said = dict[int, dict[str, dict[str, Any]]]
"""Hypotheses of each depth by utterance id."""


def compare_runs(store: str, run_a: str, run_b: str) -> list[dict[str, Any]]:
    """Every pair of depths on every test set both were scored on: WERs, their difference (a less b), its bootstrap
    interval, and the matched-pairs test. A run against itself: each pair of its depths once. Raises UserError."""
    said_a = said_by_place(store, run_a)
    said_b = said_a if run_a == run_b else said_by_place(store, run_b)
    places = sorted(set(said_a) & set(said_b))
    if not places:
        raise UserError(run_b, f"was scored on no test set that {run_a} was scored on; `foldray evaluate` scores more")
    return [
        {**dict(zip(("corpus", "split", "decoding"), place, strict=True)), "depth_a": a, "depth_b": b}
        | compare_hypotheses(said_a[place][a], said_b[place][b], f"{run_a} and {run_b} on {place[0]}")
        for place in places
        for a in sorted(said_a[place])
        for b in sorted(said_b[place])
        if run_a != run_b or a < b
    ]


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


def compare_hypotheses(said_a: dict[str, Any], said_b: dict[str, Any], what: str) -> dict[str, Any]:
    """One pair of depths. Raises UserError where the references are not the same."""
    ids = sorted(said_a)
    if ids != sorted(said_b) or any(said_a[i]["reference"] != said_b[i]["reference"] for i in ids):
        raise UserError(what, "were scored against different references; evaluate both on the same prepared corpus")
    pairs = [(said_a[i], said_b[i]) for i in ids]
    errors = [(_errors(a), _errors(b)) for a, b in pairs]
    words = [a["num_words"] for a, _ in pairs]
    test = matched_pairs([(a["alignment"], b["alignment"]) for a, b in pairs])
    low, high = bootstrap_difference(errors, words)
    wer_a, wer_b = (sum(each[side] for each in errors) / sum(words) for side in (0, 1))
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
        "num_utterances": len(ids),
        "num_words": sum(words),
    }


def _errors(said: dict[str, Any]) -> int:
    return int(said["substitutions"] + said["deletions"] + said["insertions"])
