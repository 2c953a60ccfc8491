"""Corpora: which utterances a source holds. Metadata only; no audio is decoded here.

A layout (see `layouts`) finds and reads the splits of a folder or URI. Everything after it (preparation,
shards, training) is the same for all of them.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foldray import storage
from foldray.config.corpus import BUILTIN_CORPUS, VALIDATION_NAMES, CorpusSpec
from foldray.data.builtin import builtin_corpus_id, write_builtin_corpus
from foldray.data.layouts import LAYOUTS, Place
from foldray.data.splits import carve_valid, cross_validate, sources_of, split_names
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage.layout import Store

ARCHIVES = (".gz", ".tgz", ".zip", ".tar", ".bz2", ".xz", ".7z")

PREPARE_VERSION = 1
"""Raise it with every change to what preparation writes: normalisation, decoding, shards."""


@dataclass(frozen=True)
class Corpus:
    """All utterances of a source, where it lies, and its identity.

    corpus_id: `<name>-<hash>`, the folder of its prepared form; the hash covers every description,
    the size of every audio file and every field of the spec that preparation depends on.
    """

    corpus_id: str
    folder: str
    layout: str
    utterances: list[Utterance]


def find_corpus(spec: CorpusSpec, root: str) -> Corpus:
    """What there is to prepare; `root` is the store, which keeps the built-in corpus.

    Raises UserError naming `corpus.path`, `corpus.splits`, or the file and row that is wrong.
    """
    splits = split_names(spec)
    if spec.path == BUILTIN_CORPUS:
        folder, name = _builtin_folder(root), "builtin"
    else:
        folder = _checked_folder(spec.path)
        name = storage.filesystem_path(folder).rstrip("/").rsplit("/", 1)[-1]
    place = Place(folder, storage.absolute(spec.audio_root) if spec.audio_root else None)
    layout = _recognise(place, spec)
    found = _locate(layout, place, spec)
    read = LAYOUTS[layout].read
    utterances = [
        _encodable(each)
        for split, uris in zip(splits, found, strict=True)
        for uri in uris
        for each in read(uri, split, place)
    ]
    utterances = _with_sizes(utterances, [folder, *filter(None, [place.audio_root])])
    utterances = carve_valid(cross_validate(utterances, spec), spec)
    return Corpus(f"{_slug(name)}-{_identity(utterances, folder, spec)}", folder, layout, utterances)


def _checked_folder(path: str) -> str:
    folder = storage.absolute(path)
    if storage.is_folder(folder):
        return folder
    if storage.exists(folder):
        mend = "unpack it and give the folder" if folder.endswith(ARCHIVES) else "give the folder that holds it"
        raise UserError("corpus.path", f"{folder} is no folder but a file; {mend}")
    raise UserError("corpus.path", f"{folder} is no folder; give a folder with train.jsonl and test.jsonl")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name.lower()).strip("-.") or "corpus"


def _identity(utterances: list[Utterance], folder: str, spec: CorpusSpec) -> str:
    digest = hashlib.sha256(f"{PREPARE_VERSION}".encode())
    left_out = {"path", "layout", "audio_root", "max_quarantine"}
    if spec.cross_validate is None:  # corpora are the same as before there was such a field
        left_out.add("cross_validate")
    fields = spec.model_dump(mode="json", exclude=left_out)
    digest.update(json.dumps(fields, sort_keys=True).encode())
    folders = [folder, *([storage.absolute(spec.audio_root)] if spec.audio_root else [])]
    for utterance in utterances:
        digest.update(json.dumps(_described(utterance, folders)).encode())
    return digest.hexdigest()[:10]


def _described(utterance: Utterance, folders: list[str]) -> list[Any]:
    """What an utterance is, wherever its corpus lies: the same files under another root are the same corpus."""
    inside = next(filter(None, (_inside(utterance.audio, folder) for folder in folders)), None)
    problem = utterance.problem and (utterance.problem[0], "")
    return replace(utterance, audio=f"/{inside}" if inside else utterance.audio, row="", problem=problem).values()


def _builtin_folder(root: str) -> str:
    """The spoken corpus foldray makes itself: made once for each version, kept in the store."""
    folder = Store(root).source(f"builtin-{builtin_corpus_id()}")
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


# --- Layouts and splits ----------------------------------------------------------------------------

_ALIASES = {"valid": VALIDATION_NAMES, "test": ("test", "eval")}


def _find_split(layout: str, place: Place, entry: str) -> list[list[str]]:
    """What a layout finds for an entry of `corpus.splits`: for each of its sources, which may be none."""
    find = LAYOUTS[layout].find
    if "=" in entry:
        return [find(place, source) for source in sources_of(entry)]
    names = _ALIASES.get(entry, (entry,))
    return [next(filter(None, (find(place, name) for name in names)), [])]


def _recognise(place: Place, spec: CorpusSpec) -> str:
    """The layout of a folder: the one the spec names, or the first that finds any of the splits; by listings alone."""
    if spec.layout != "auto":
        return spec.layout
    for name, layout in LAYOUTS.items():
        found = (uris for entry in spec.splits for uris in _find_split(name, place, entry) if uris)
        first = next(found, None)
        if first and layout.looks_right(first[0]):
            return name
    if "dataset_dict.json" in place.files():
        mend = "write its splits as train.parquet, test.parquet with to_parquet()"
        raise UserError("corpus.path", f"{place.folder} was written by datasets' save_to_disk; {mend}")
    raise UserError(
        "corpus.path",
        f"{place.folder} has none of the layouts known ({', '.join(LAYOUTS)}); write train.jsonl and test.jsonl, "
        'one object a line: {"audio": "clips/a.flac", "text": "HELLO"}, or name what there is in corpus.splits, '
        f"such as [train=A, test=B], where . is the folder itself; {_contents(place)}",
    )


def _locate(layout: str, place: Place, spec: CorpusSpec) -> list[list[str]]:
    """The URIs of each split. Raises UserError for one that is missing, but a `valid` without a source."""
    found = [_find_split(layout, place, entry) for entry in spec.splits]
    wants = LAYOUTS[layout].wants
    if not any(uris for each in found for uris in each):
        raise UserError("corpus.path", f"{place.folder} is not laid out as {layout} ({wants}); {_contents(place)}")
    for entry, each in zip(spec.splits, found, strict=True):
        for source, uris in zip(sources_of(entry), each, strict=True):
            if not uris and entry != "valid":
                rest = ",".join(name for name in split_names(spec) if name != entry)
                mend = f"add it, say what it is, corpus.splits=[…,{entry.partition('=')[0]}=A], or do without: [{rest}]"
                looked = wants.replace("train", source)
                raise UserError(
                    "corpus.path", f"{place.folder} has no {source} ({layout}: {looked}); {_contents(place)}; {mend}"
                )
    located = [[uri for uris in each for uri in uris] for each in found]
    _refuse_shared(located, spec)
    return located


def _refuse_shared(located: list[list[str]], spec: CorpusSpec) -> None:
    owner: dict[str, str] = {}
    for entry, uris in zip(spec.splits, located, strict=True):
        for uri in uris:
            if uri in owner:
                raise UserError("corpus.splits", f"'{owner[uri]}' and '{entry}' both take {uri}; say which has it")
            owner[uri] = entry


def _contents(place: Place) -> str:
    names = sorted([*place.files(), *(f"{name}/" for name in place.folders())])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"it holds {', '.join(names[:12]) or 'nothing'}{more}"


# --- Sizes -----------------------------------------------------------------------------------------


def _encodable(utterance: Utterance) -> Utterance:
    """The utterance with '?' for what is no text: JSON may hold halves of characters, which nothing can write."""
    texts = {name: getattr(utterance, name) for name in ("id", "audio", "text", "speaker", "language", "row")}
    try:
        "".join(text or "" for text in texts.values()).encode()
    except UnicodeEncodeError:
        return replace(
            utterance, **{name: text and text.encode(errors="replace").decode() for name, text in texts.items()}
        )
    return utterance


def _with_sizes(utterances: list[Utterance], folders: list[str]) -> list[Utterance]:
    """The utterances with the sizes of their files; those in containers know theirs, and those ruled out need none."""
    wanted = {u.audio for u in utterances if u.bytes is None and not u.problem}
    sizes: dict[str, int | None] = {}
    for folder in (folder for folder in folders if not storage.is_local(folder)):
        # One listing for all files below: an object store would take a request for each.
        below = {uri: inside for uri in wanted - sizes.keys() if (inside := _inside(uri, folder))}
        tree = storage.list_tree(folder) if below else {}
        sizes.update({uri: tree.get(inside) for uri, inside in below.items()})
    others = sorted(wanted - sizes.keys())
    known = [uri for uri in others if storage.is_known(uri)]
    sizes.update(zip(known, storage.file_sizes(known), strict=True))
    return [replace(u, bytes=sizes.get(u.audio)) if u.bytes is None and not u.problem else u for u in utterances]


def _inside(uri: str, folder: str) -> str | None:
    """The path of a file below a folder, None where it lies elsewhere."""
    path = storage.filesystem_path(uri).removeprefix(storage.filesystem_path(folder).rstrip("/") + "/")
    return path if uri == storage.join(folder, path) else None
