"""Two runs side by side: every depth of one against every depth of the other, on the same utterances."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from foldray.errors import UserError
from foldray.results.reader import read_hypotheses, read_rows
from foldray.results.significance import bootstrap_difference, matched_pairs

Place = tuple[str, str, str]
"""A test set and how it was decoded: corpus, split, decoding."""
PLACE = ("corpus", "split", "decoding")
Said = dict[int, dict[str, dict[str, Any]]]
"""Hypotheses of each depth by utterance id."""


def compare_runs(
    store: str,
    run_a: str,
    run_b: str,
    filters: Sequence[str] = (),
    *,
    margin: float | None = None,
    by_speaker: bool = False,
) -> list[dict[str, Any]]:
    """Every pair of depths on every test set both were scored on: WERs, their difference (a less b), its bootstrap
    interval, and the matched-pairs test. A run against itself: each pair of its depths once.

    Several runs on either side, joined by commas, are compared as one: the first with the first, the second with the
    second. Seeds share their test sets; what is not shared by all, as in a cross-validation, is one test set where
    each has its own. filters: such as `split=test` or `corpus=A,B`, where not every test set is meant.
    margin: a difference that is still none (0.01 is a point). Each pair then says whether its whole interval is at or
    below it, `within_margin`: that A is not worse is shown by that, and not by the lack of a significant difference.
    by_speaker: the interval draws whole speakers, whose utterances are not independent.
    Raises UserError.
    """
    sides = [names.split(",") for names in (run_a, run_b)]
    if not all(sides[0] + sides[1]):  # an empty name would be every run of the store
        raise UserError("compare", f"'{run_a}' and '{run_b}' name runs; join several by commas, with nothing between")
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(str(len(side)) for side in sides)
        raise UserError("compare", f"runs are compared one by one, so that both sides need as many; these are {counts}")
    wanted = [_wanted(given) for given in filters]
    said = {
        run_id: {
            place: depths
            for place, depths in said_by_place(store, run_id).items()
            if all(place[PLACE.index(name)] in values for name, values in wanted)
        }
        for run_id in dict.fromkeys(sides[0] + sides[1])
    }
    found: list[dict[str, Any]] = [
        {**dict(zip(PLACE, place, strict=True)), "depth_a": a, "depth_b": b}
        | compare_hypotheses(
            [(one[a], other[b]) for one, other in couples],
            f"{run_a} and {run_b} on {place[0]}",
            by_speaker=by_speaker,
        )
        for place, couples in _pooled(said, list(zip(*sides, strict=True)), filters).items()
        for a in sorted(set.intersection(*({*one} for one, _ in couples)))
        for b in sorted(set.intersection(*({*other} for _, other in couples)))
        if run_a != run_b or a < b
    ]
    if not found:
        depths = {run_id: sorted({depth for place in said[run_id].values() for depth in place}) for run_id in said}
        told = "; ".join(f"{run_id} at {', '.join(map(str, each))}" for run_id, each in depths.items())
        raise UserError("compare", f"there are no two depths that all these runs were scored at ({told})")
    if margin is None:
        return found
    return [{**pair, "margin": margin, "within_margin": pair["high"] <= margin} for pair in found]


def _wanted(given: str) -> tuple[str, list[str]]:
    name, is_one, values = given.partition("=")
    if not is_one or name not in PLACE:
        raise UserError(given, "is no filter of compare; write split=test, corpus=A,B or decoding=ctc")
    return name, values.split(",")


def _pooled(
    said: dict[str, dict[Place, Said]], couples: Sequence[tuple[str, str]], filters: Sequence[str]
) -> dict[Place, list[tuple[Said, Said]]]:
    """What is compared as one, by test set: what each couple of runs said."""
    places = [{*said[a]} & {*said[b]} for a, b in couples]
    for (a, b), shared in zip(couples, places, strict=True):
        if not shared:
            told = f" ({' '.join(filters)})" if filters else ""
            mend = "see what there is with `ls`" if filters else "`foldray evaluate` scores more"
            raise UserError(b, f"was scored on no test set that {a} was scored on{told}; {mend}")

    def of_couples(own: Sequence[Place]) -> list[tuple[Said, Said]]:
        return [(said[a][place], said[b][place]) for (a, b), place in zip(couples, own, strict=True)]

    everywhere = set.intersection(*places)
    pooled = {place: of_couples([place] * len(couples)) for place in sorted(everywhere)}
    several: set[str] = set()
    for kind in sorted(set.intersection(*({place[1:] for place in shared} for shared in places))):
        left = [[place for place in shared - everywhere if place[1:] == kind] for shared in places]
        if all(left):
            several |= {place[0] for own in left for place in own if len(own) > 1}
        if all(len(own) == 1 for own in left):
            corpora = ", ".join(dict.fromkeys(place[0] for (place,) in left))
            pooled[corpora, *kind] = of_couples([place for (place,) in left])
    if several:
        names = ",".join(sorted(several))
        raise UserError(
            "compare", f"runs were scored on several corpora; say which, one for each couple: corpus={names}"
        )
    if not pooled:
        raise UserError("compare", "these runs share no split and decoding that all were scored on")
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


def compare_hypotheses(
    couples: Sequence[tuple[dict[str, Any], dict[str, Any]]], what: str, *, by_speaker: bool = False
) -> dict[str, Any]:
    """One pair of depths: what either said of the same utterances, by id, as often as there are couples of runs.

    An utterance that several couples have counts once: its errors are added up before anything is tested or drawn.
    Raises UserError where references are not the same.
    """
    # An utterance is known by what was said in it too: two preparations of one test set are the same utterances.
    heard: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for said_a, said_b in couples:
        if said_a.keys() != said_b.keys() or any(said_a[i]["reference"] != said_b[i]["reference"] for i in said_a):
            raise UserError(what, "were scored against different references; evaluate both on the same prepared corpus")
        for i in sorted(said_a):
            heard[i, said_a[i]["reference"]].append((said_a[i], said_b[i]))
    errors = [(sum(_errors(a) for a, _ in each), sum(_errors(b) for _, b in each)) for each in heard.values()]
    words = [sum(a["num_words"] for a, _ in each) for each in heard.values()]
    test = matched_pairs([[(a["alignment"], b["alignment"]) for a, b in each] for each in heard.values()])
    drawn = _of_speakers([_speaker(each) for each in heard.values()], errors, words, what) if by_speaker else None
    low, high = bootstrap_difference(*(drawn or (errors, words)))
    wer_a, wer_b = (sum(side) / sum(words) for side in zip(*errors, strict=True))
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
        "couples": len(couples),
        "num_utterances": len(heard),
        "num_words": sum(each[0][0]["num_words"] for each in heard.values()),
        **({"num_speakers": len(drawn[1])} if drawn else {}),
    }


MIN_SPEAKERS = 5
"""Fewer say little of how speakers differ: of three, one draw in nine is a single speaker's."""


def _speaker(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Whose utterance it is, by either side: one may have been scored before rows named speakers."""
    return next((said["speaker"] for pair in pairs for said in pair if said["speaker"]), "")


def _of_speakers(
    speakers: Sequence[str], errors: Sequence[tuple[int, int]], words: Sequence[int], what: str
) -> tuple[list[tuple[int, int]], list[int]]:
    """Errors and words of each speaker from those of each utterance. Raises UserError where that says nothing."""
    if nameless := sum(not speaker for speaker in speakers):
        raise UserError(
            what,
            f"{nameless:,} of {len(speakers):,} utterances have no speaker; where the corpus names speakers, "
            "`foldray evaluate` one run of each couple again (results older than version 5 have none)",
        )
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for speaker, (a, b), count in zip(speakers, errors, words, strict=True):
        sums[speaker] = [total + more for total, more in zip(sums[speaker], (a, b, count), strict=True)]
    if len(sums) < MIN_SPEAKERS:
        mend = f"it takes {MIN_SPEAKERS}: leave --by-speaker out, or score more"
        raise UserError(what, f"{len(sums)} speakers are too few to draw from; {mend}")
    return [(a, b) for a, b, _ in sums.values()], [count for _, _, count in sums.values()]


def _errors(said: dict[str, Any]) -> int:
    return int(said["substitutions"] + said["deletions"] + said["insertions"])
