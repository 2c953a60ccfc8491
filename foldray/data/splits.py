"""Splits: the names in `corpus.splits`, cross-validation, and a `valid` split for corpora that have none."""

import hashlib
import re
from collections import Counter
from dataclasses import replace

from foldray.config.corpus import CorpusSpec
from foldray.data.utterance import Utterance
from foldray.errors import UserError


def split_names(spec: CorpusSpec) -> tuple[str, ...]:
    """The names of the entries of `corpus.splits`. Raises UserError for an invalid entry, or a name used twice."""
    names = spec.split_names
    for entry, name in zip(spec.splits, names, strict=True):
        if not re.fullmatch(r"\w[\w.-]*", name) or not all(sources_of(entry)):
            raise UserError(
                "corpus.splits", f"'{entry}' is not a split; write a name, or name=A+B for files or sub-folders"
            )
        if names.count(name) > 1:
            raise UserError("corpus.splits", f"'{name}' is used twice; join its parts: {name}=A+B")
    return names


def sources_of(entry: str) -> list[str]:
    """The files or sub-folders of an entry: its name, or the parts after '='."""
    name, named, parts = entry.partition("=")
    return [part.strip("/") for part in parts.split("+")] if named else [name]


def needed_splits(spec: CorpusSpec) -> set[str]:
    """The splits that must have utterances. Training works without a `valid`, and a carved one may be unusable."""
    return {"train", "test"} if spec.cross_validate else {*split_names(spec)} - {"valid"}


def cross_validate(utterances: list[Utterance], spec: CorpusSpec) -> list[Utterance]:
    """All utterances as `train`, except those of one part of the speakers, which are `test`.

    Speakers are distributed over the parts in order of their number of utterances, most first, each to the part with
    the fewest so far. So parts have similar sizes, every utterance is tested in one of them, and the order of rows has
    no influence.

    Raises:
        UserError: There are fewer speakers than parts, or an utterance has no speaker: its voice could be in both
            splits.
    """
    if spec.cross_validate is None:
        return utterances
    usable = [u for u in utterances if _is_usable(u)]
    if nameless := sum(not u.speaker for u in usable):
        raise UserError(
            "corpus.cross_validate",
            f"{nameless:,} of {len(usable):,} utterances have no speaker, and a voice must not be in both 'train' and "
            "'test'; give each a speaker, or the utterance's id if all voices are different",
        )
    number, parts = map(int, spec.cross_validate.split("/"))
    counts = Counter(u.speaker for u in usable)
    if len(counts) < parts:
        raise UserError("corpus.cross_validate", f"{parts} parts of {len(counts)} speakers; use fewer parts")
    sizes = [0] * parts
    tested: set[str] = set()
    for name in sorted(counts, key=lambda name: (-counts[name], _hash(name))):
        part = sizes.index(min(sizes))
        sizes[part] += counts[name]
        if part == number - 1:
            tested.add(name)
    return [replace(u, split="test" if u.speaker in tested else "train") for u in utterances]


def carve_valid(utterances: list[Utterance], spec: CorpusSpec) -> list[Utterance]:
    """Move whole speakers from `train` to `valid` if the source has no `valid`.

    Speakers are chosen by the hashes of their names until `corpus.valid_fraction` of the utterances is reached, so
    the choice does not depend on the order of rows. An utterance without a speaker counts as a speaker of its own. If
    every speaker alone has more than twice that many utterances, single utterances are moved instead.
    """
    splits = {utterance.split for utterance in utterances}
    if "valid" in splits or "valid" not in split_names(spec) or not spec.valid_fraction:
        return utterances
    train = [u for u in utterances if u.split == "train" and _is_usable(u)]
    wanted = spec.valid_fraction * len(train)
    moved = _choose([u.speaker or u.id for u in train], wanted)
    by_speaker = bool(moved)
    moved = moved or _choose([u.id for u in train], wanted)
    return [
        replace(u, split="valid")
        if u.split == "train" and ((u.speaker or u.id) if by_speaker else u.id) in moved
        else u
        for u in utterances
    ]


def _is_usable(utterance: Utterance) -> bool:
    """Whether an utterance is usable as far as metadata tells; only such utterances are counted for splits."""
    return bool(utterance.bytes and utterance.text) and not utterance.problem


def _choose(names: list[str], wanted: float) -> set[str]:
    """Choose names, tried in the order of their hashes, that together occur about `wanted` times in `names`.

    A name that occurs more than 2 * `wanted` times is skipped.
    """
    counts = Counter(names)
    chosen: set[str] = set()
    moved = 0
    for name in sorted(counts, key=_hash):
        if moved < wanted and moved + counts[name] <= max(1, 2 * wanted) and moved + counts[name] < len(names):
            chosen.add(name)
            moved += counts[name]
    return chosen


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
