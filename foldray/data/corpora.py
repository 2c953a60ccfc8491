"""Corpora: which utterances a source holds. Metadata only; no audio is decoded here.

A layout is a function from a folder or URI to utterances split by split. Everything after it
(preparation, shards, training) is the same for all of them.
"""

import hashlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from foldray import storage
from foldray.data.builtin import builtin_corpus_id, write_builtin_corpus
from foldray.errors import UserError
from foldray.spec import BUILTIN_CORPUS, CorpusSpec

PREPARE_VERSION = 1
"""Raise it with every change to what preparation writes: normalisation, decoding, shards."""


@dataclass(frozen=True)
class Utterance:
    """One utterance as its source describes it.

    audio: URI of the file; row: where it was described, for messages; duration: seconds as
    declared, or None; text: None where the source has no such field; start: seconds into the file
    where a segment begins, None for a whole file; bytes: size of the audio file, None where it is missing.
    """

    id: str
    split: str
    audio: str
    text: str | None
    speaker: str
    language: str
    duration: float | None
    row: str
    start: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Corpus:
    """All utterances of a source and its identity.

    corpus_id: `<name>-<hash>`, the folder of its prepared form; the hash covers every description,
    the size of every audio file and every field of the spec that preparation depends on.
    """

    corpus_id: str
    layout: str
    utterances: list[Utterance]


def find_corpus(spec: CorpusSpec, root: str) -> Corpus:
    """What there is to prepare; `root` is the store, which keeps the built-in corpus.

    Raises UserError naming `corpus.path`, or the file and row that is wrong.
    """
    if spec.path == BUILTIN_CORPUS:
        folder, name = _builtin_folder(root), "builtin"
    else:
        folder = storage.absolute(spec.path)
        name = storage.filesystem_path(folder).rstrip("/").rsplit("/", 1)[-1]
        if not storage.is_folder(folder):
            raise UserError("corpus.path", f"{folder} is no folder; give a folder with train.jsonl and test.jsonl")
    layout = _recognise(folder, spec)
    utterances = _with_sizes(_carve_valid(list(LAYOUTS[layout](folder, spec)), spec))
    return Corpus(f"{_slug(name)}-{_identity(utterances, folder, spec)}", layout, utterances)


def _recognise(folder: str, spec: CorpusSpec) -> str:
    """The layout of a folder: the one the spec names, or what its files look like."""
    if spec.layout != "auto":
        return spec.layout
    if any(name.endswith(".jsonl") for name in storage.list_files(folder)):
        return "jsonl"
    raise UserError(
        "corpus.path",
        f"{folder} has none of the layouts known ({', '.join(LAYOUTS)}); write train.jsonl and test.jsonl, "
        'one object a line: {"audio": "clips/a.flac", "text": "HELLO"}',
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name.lower()).strip("-.") or "corpus"


def _identity(utterances: list[Utterance], folder: str, spec: CorpusSpec) -> str:
    digest = hashlib.sha256(f"{PREPARE_VERSION}".encode())
    left_out = {"path", "layout", "max_quarantine"}
    # Characters were there first: a corpus of them keeps its name.
    left_out |= {"units", "vocab_size"} if spec.units == "characters" else set()
    fields = spec.model_dump(mode="json", exclude=left_out)
    digest.update(json.dumps(fields, sort_keys=True).encode())
    for utterance in utterances:
        # Where the corpus lies is not what it is: the same files under another root are the same corpus.
        entry = {**asdict(utterance), "audio": utterance.audio.removeprefix(folder), "row": ""}
        digest.update(json.dumps(entry, sort_keys=True).encode())
    return digest.hexdigest()[:10]


def _builtin_folder(root: str) -> str:
    """The spoken corpus foldray makes itself: made once for each version, kept in the store."""
    folder = storage.join(storage.absolute(root), "sources", f"builtin-{builtin_corpus_id()}")
    if storage.exists(storage.join(folder, "test.jsonl")):
        return folder
    with tempfile.TemporaryDirectory() as made:
        try:
            write_builtin_corpus(Path(made))
        except ImportError as error:
            raise UserError("corpus.path", str(error)) from None
        # The manifests go last: a folder that has them is whole.
        storage.upload(Path(made) / "audio", storage.join(folder, "audio"))
        for split in ("train", "test"):
            storage.write_bytes(storage.join(folder, f"{split}.jsonl"), (Path(made) / f"{split}.jsonl").read_bytes())
    return folder


# --- JSONL -----------------------------------------------------------------------------------------

_NAMES = {
    "audio": ("audio", "audio_filepath", "path", "file"),
    "text": ("text", "transcript", "sentence"),
    "language": ("lang", "language"),
    "speaker": ("speaker", "speaker_id", "spk"),
}


def read_jsonl_corpus(folder: str, spec: CorpusSpec) -> Iterator[Utterance]:
    """Utterances of `train.jsonl`, `test.jsonl` …: one object a line with `audio` and `text`.

    Optional: `id`, `speaker`, `lang`, `duration` and `offset` (seconds; both together name a segment
    of a longer file). NeMo's `audio_filepath` is understood too. Relative audio paths start at the
    folder of the manifest, and are the ids of rows without one.
    """
    present = [split for split in spec.splits if storage.exists(storage.join(folder, f"{split}.jsonl"))]
    for needed in (split for split in spec.splits if split != "valid"):
        if needed not in present:
            raise UserError(
                "corpus.path",
                f"{folder} has no {needed}.jsonl; write it, or name the splits there are in corpus.splits",
            )
    for split in present:
        yield from _read_manifest(folder, split)


def _read_manifest(folder: str, split: str) -> Iterator[Utterance]:
    file = storage.join(folder, f"{split}.jsonl")
    # Not splitlines(): JSON strings may hold the other characters that Unicode counts as line ends.
    for number, line in enumerate(storage.read_bytes(file).decode("utf-8-sig", "replace").split("\n"), start=1):
        if line.strip():
            yield _read_row(line, f"{file}:{number}", folder, split)


def _read_row(line: str, row: str, folder: str, split: str) -> Utterance:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(row, f"is not JSON ({error.msg} at column {error.colno}); mend or remove the line") from None
    if not isinstance(entry, dict):
        raise UserError(row, 'is not an object; write {"audio": "…", "text": "…"}')
    audio = str(_field(entry, "audio") or "")
    if not audio:
        raise UserError(row, f"has no audio file; give one of {', '.join(_NAMES['audio'])}")
    start, duration = (_seconds(entry, name, row) for name in ("offset", "duration"))
    if start is not None and duration is None:
        raise UserError(row, "has an offset but no duration; a segment needs both")
    segment = "" if start is None else f"@{start:g}+{duration:g}"
    return Utterance(
        id=str(entry.get("id") or audio.rsplit(".", 1)[0] + segment),
        split=split,
        audio=audio if "://" in audio or audio.startswith("/") else storage.join(folder, audio),
        text=_text(entry),
        speaker=str(_field(entry, "speaker") or ""),
        language=str(_field(entry, "language") or ""),
        duration=duration,
        start=start,
        row=row,
    )


def _text(entry: dict[str, Any]) -> str | None:
    """The row's text, None where it has no such field at all."""
    return str(_field(entry, "text") or "") if any(name in entry for name in _NAMES["text"]) else None


def _field(entry: dict[str, Any], name: str) -> Any:
    return next((entry[key] for key in _NAMES[name] if entry.get(key) not in (None, "")), None)


def _seconds(entry: dict[str, Any], name: str, row: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0 or (name == "duration" and not seconds):
        raise UserError(row, f"{name} {value!r} is not a number of seconds")
    return seconds


LAYOUTS: dict[str, Callable[[str, CorpusSpec], Iterator[Utterance]]] = {"jsonl": read_jsonl_corpus}
"""What reads each layout: from a folder or URI to utterances, metadata only."""


# --- Splits and sizes ------------------------------------------------------------------------------


def _carve_valid(utterances: list[Utterance], spec: CorpusSpec) -> list[Utterance]:
    """Move whole speakers from `train` to `valid` where the source has no `valid`.

    Which speakers: by the hash of their names, until the share is reached, so the choice does not
    depend on the order of rows. An utterance without a speaker counts as a speaker of its own; where
    no speaker is small enough for twice the share, utterances are moved instead.
    """
    splits = {utterance.split for utterance in utterances}
    if "valid" in splits or "valid" not in spec.splits or not spec.valid_fraction:
        return utterances
    train = [utterance for utterance in utterances if utterance.split == "train"]
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


def _choose(names: list[str], wanted: float) -> set[str]:
    """Names whose counts add up to about `wanted`, in the order of their hashes; none over twice that."""
    counts = Counter(names)
    chosen: set[str] = set()
    moved = 0
    for name in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if moved < wanted and moved + counts[name] <= max(1, 2 * wanted) and moved + counts[name] < len(names):
            chosen.add(name)
            moved += counts[name]
    return chosen


def _with_sizes(utterances: list[Utterance]) -> list[Utterance]:
    sizes = storage.file_sizes([utterance.audio for utterance in utterances])
    return [replace(utterance, bytes=size) for utterance, size in zip(utterances, sizes, strict=True)]
