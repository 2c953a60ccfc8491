"""Ids of a corpus: unique, whatever its splits and files number anew."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from foldray import storage
from foldray.data.layouts.source_folder import stem
from foldray.data.utterance import Utterance

Place = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _First:
    """The first utterance of an id."""

    split: str
    uri: str
    place: Place


def unique_ids(read: Iterable[tuple[str, Utterance]], folder: str) -> tuple[list[Utterance], str | None]:
    """Make ids unique that begin anew in each split, or in each file or folder of a split.

    If an id names different audio in two splits, all ids get the name of their split before them (`dev/0000`); in two
    files or folders of one split, the path of the file or folder. The same audio keeps one id, so that the second
    is found to be a duplicate, and so do rows of one file.

    Args:
        read: Every utterance with the URI it was read from.
        folder: URI of the corpus.

    Returns:
        The utterances, and a note if ids were changed.
    """
    rows = list(read)
    if len({each.id for _, each in rows}) == len(rows):
        return [each for _, each in rows], None
    first: dict[str, _First] = {}
    repeated: dict[str, bool] = {}
    for uri, each in rows:
        if each.problem:
            continue
        before = first.setdefault(each.id, _First(each.split, uri, _place(each)))
        if uri != before.uri and _place(each) != before.place:
            repeated[each.id] = repeated.get(each.id, False) or each.split == before.split
    if not repeated:
        return [each for _, each in rows], None
    by_file = any(repeated.values())
    prefixes = {uri: stem(storage.relative(uri, folder)) for uri in {uri for uri, _ in rows}} if by_file else {}
    utterances = []
    for uri, each in rows:
        same = first.get(each.id)
        owner, split = (same.uri, same.split) if same and _place(each) == same.place else (uri, each.split)
        utterances.append(replace(each, id=f"{prefixes.get(owner, split)}/{each.id}"))
    where = "file" if by_file else "split"
    count = f"{len(repeated):,} ids name" if len(repeated) > 1 else "1 id names"
    note = f"{count} different audio in several {where}s, such as '{next(iter(repeated))}'"
    return utterances, f"{note}; every id begins with its {where}"


def _place(utterance: Utterance) -> Place:
    """What tells the audio of an utterance from any other: its place, or the row where it has none."""
    if not utterance.audio:
        return (utterance.row,)
    return (
        utterance.audio,
        utterance.entry,
        utterance.start,
        utterance.duration if utterance.start is not None else None,
    )
