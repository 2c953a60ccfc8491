"""Corpora: which utterances a source holds. Metadata only; no audio is decoded here.

A layout is a function from a folder or URI to utterances split by split. Everything after it
(preparation, shards, training) is the same for all of them.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foldray import storage
from foldray.data.builtin import builtin_corpus_id, write_builtin_corpus
from foldray.errors import UserError
from foldray.spec import BUILTIN_CORPUS, CorpusSpec


@dataclass(frozen=True)
class Utterance:
    """One utterance as its source describes it.

    audio: URI of the file; row: where it was described, for messages; duration: seconds as
    declared, or None; bytes: size of the audio file, None where it is missing.
    """

    id: str
    split: str
    audio: str
    text: str
    speaker: str
    language: str
    duration: float | None
    row: str
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
        name = folder.rstrip("/").rsplit("/", 1)[-1]
        if not storage.is_folder(folder):
            raise UserError("corpus.path", f"{spec.path} is not a folder or prefix with files; check the path")
    utterances = _with_sizes(_carve_valid(list(read_jsonl_corpus(folder, spec)), spec))
    return Corpus(f"{_slug(name)}-{_identity(utterances, folder, spec)}", "jsonl", utterances)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name.lower()).strip("-.") or "corpus"


def _identity(utterances: list[Utterance], folder: str, spec: CorpusSpec) -> str:
    digest = hashlib.sha256()
    fields = spec.model_dump(mode="json", exclude={"path", "layout", "max_quarantine"})
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

    Optional: `id`, `speaker`, `lang`, `duration` (seconds). NeMo's `audio_filepath` is understood
    too. Relative audio paths start at the folder of the manifest.
    """
    present = [split for split in spec.splits if storage.exists(storage.join(folder, f"{split}.jsonl"))]
    for needed in ("train", "test"):
        if needed in spec.splits and needed not in present:
            raise UserError("corpus.path", f"{folder} has no {needed}.jsonl; write one object a line: "
                            '{"audio": "clips/a.flac", "text": "HELLO"}')  # fmt: skip
    for split in present:
        yield from _read_manifest(folder, split)


def _read_manifest(folder: str, split: str) -> Iterator[Utterance]:
    file = storage.join(folder, f"{split}.jsonl")
    for number, line in enumerate(storage.read_bytes(file).decode("utf-8", "replace").splitlines(), start=1):
        if line.strip():
            yield _read_row(line, f"{file}:{number}", folder, split)


def _read_row(line: str, row: str, folder: str, split: str) -> Utterance:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(row, f"is not JSON ({error.msg} at column {error.colno}); mend or remove the line") from None
    if not isinstance(entry, dict):
        raise UserError(row, 'is not an object; write {"audio": "…", "text": "…"}')
    audio = _field(entry, "audio")
    if not audio:
        raise UserError(row, f"has no audio file; give one of {', '.join(_NAMES['audio'])}")
    return Utterance(
        id=str(entry.get("id") or str(audio).rsplit("/", 1)[-1].rsplit(".", 1)[0]),
        split=split,
        audio=_resolve(str(audio), folder),
        text=str(_field(entry, "text") or ""),
        speaker=str(_field(entry, "speaker") or ""),
        language=str(_field(entry, "language") or ""),
        duration=_seconds(entry.get("duration"), row),
        row=row,
    )


def _field(entry: dict[str, Any], name: str) -> Any:
    return next((entry[key] for key in _NAMES[name] if entry.get(key) not in (None, "")), None)


def _seconds(value: Any, row: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(row, f"duration {value!r} is not a number of seconds") from None


def _resolve(audio: str, folder: str) -> str:
    return audio if "://" in audio or audio.startswith("/") else storage.join(folder, audio)


# --- Splits and sizes ------------------------------------------------------------------------------


def _carve_valid(utterances: list[Utterance], spec: CorpusSpec) -> list[Utterance]:
    """Move whole speakers from `train` to `valid` where the source has no `valid`.

    Which speakers: by the hash of their names, until the share is reached, so the choice does not
    depend on the order of rows. Utterances without speakers count as a speaker each.
    """
    splits = {utterance.split for utterance in utterances}
    if "valid" in splits or "valid" not in spec.splits or not spec.valid_fraction:
        return utterances
    train = [u for u in utterances if u.split == "train"]
    several = len({u.speaker for u in train}) > 2
    key = {u: (u.speaker if several else u.id) for u in train}
    wanted, chosen, moved = spec.valid_fraction * len(train), set[str](), 0
    sizes: dict[str, int] = {}
    for speaker in key.values():
        sizes[speaker] = sizes.get(speaker, 0) + 1
    for speaker in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if moved < wanted and moved + sizes[speaker] < len(train):
            chosen.add(speaker)
            moved += sizes[speaker]
    return [_replace_split(u, "valid") if key.get(u) in chosen else u for u in utterances]


def _replace_split(utterance: Utterance, split: str) -> Utterance:
    return Utterance(**{**asdict(utterance), "split": split})


def _with_sizes(utterances: list[Utterance]) -> list[Utterance]:
    sizes = storage.file_sizes([utterance.audio for utterance in utterances])
    return [
        Utterance(**{**asdict(utterance), "bytes": size}) for utterance, size in zip(utterances, sizes, strict=True)
    ]
