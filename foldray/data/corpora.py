"""Corpora: which utterances a source contains. Metadata only; no audio is decoded here.

A layout (see `layouts`) finds and reads the splits of a folder or URI. Everything after it (preparation,
shards, training) is the same for all of them.
"""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from foldray import storage
from foldray.config.corpus import BUILTIN_CORPUS, VALIDATION_NAMES, CorpusSpec
from foldray.data.audio_files import inside_of, with_sizes
from foldray.data.audio_places import AudioPlaces
from foldray.data.builtin import builtin_corpus_id, write_builtin_corpus
from foldray.data.identity import unique_ids
from foldray.data.layouts import LAYOUTS, SourceFolder
from foldray.data.splits import carve_valid, cross_validate, sources_of, split_names
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.storage.layout import GENERATION_FILE, STOCK_TOKENIZER_FILE, ModelFolder, Store

ARCHIVES = (".gz", ".tgz", ".zip", ".tar", ".bz2", ".xz", ".7z")

PREPARE_VERSION = 1
"""Raise it with every change to what preparation writes: normalisation, decoding, shards. Corpus ids depend on it."""


@dataclass(frozen=True)
class Corpus:
    """All utterances of a source.

    Attributes:
        corpus_id: `<name>-<hash>`, the folder of the prepared form. The hash covers every description, the size of
            every audio file and every field of the spec that preparation depends on.
        folder: URI of the source.
        layout: Key of `LAYOUTS`.
        utterances: Every utterance, also those that metadata already rules out.
        note: What was changed to read the source, for the user; None if nothing was.
    """

    corpus_id: str
    folder: str
    layout: str
    utterances: list[Utterance]
    note: str | None = None


def find_corpus(spec: CorpusSpec, root: str) -> Corpus:
    """Find the utterances of a source.

    Args:
        spec: The recipe's `corpus` section.
        root: The store, where the built-in corpus is kept.

    Raises:
        UserError: Names `corpus.path`, `corpus.splits`, or the file and row that is wrong.
    """
    splits = split_names(spec)
    if spec.path == BUILTIN_CORPUS:
        folder, name = _builtin_folder(root), "builtin"
    else:
        folder = _checked_folder(spec.path)
        name = storage.filesystem_path(folder).rstrip("/").rsplit("/", 1)[-1]
    source = SourceFolder(folder, storage.absolute(spec.audio_root) if spec.audio_root else None, spec.follow_links)
    places = AudioPlaces([folder, *filter(None, [source.audio_root])], spec.audio_places)
    layout = _detect_layout(source, spec)
    found = _find_splits(layout, source, spec)
    read = LAYOUTS[layout].read
    rows = (
        (uri, places.checked(encodable(each)))
        for split, uris in zip(splits, found, strict=True)
        for uri in uris
        for each in read(uri, split, source)
    )
    utterances, note = unique_ids(rows, folder)
    utterances = with_sizes(utterances, source)
    utterances = carve_valid(cross_validate(utterances, spec), spec)
    return Corpus(f"{_slug(name)}-{_identity(utterances, folder, spec)}", folder, layout, utterances, note)


def _checked_folder(path: str) -> str:
    folder = storage.absolute(path)
    if storage.is_folder(folder):
        return folder
    if storage.exists(folder):
        fix = "unpack it and give the folder" if folder.endswith(ARCHIVES) else "give the folder that contains it"
        raise UserError("corpus.path", f"{folder} is a file, not a folder; {fix}")
    raise UserError("corpus.path", f"{folder} does not exist; give a folder with train.jsonl and test.jsonl")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name.lower()).strip("-.") or "corpus"


def _identity(utterances: list[Utterance], folder: str, spec: CorpusSpec) -> str:
    digest = hashlib.sha256(f"{PREPARE_VERSION}".encode())
    left_out = {"path", "layout", "audio_root", "audio_places", "follow_links", "max_quarantine", "tokenizer"}
    if spec.cross_validate is None:  # the id of a corpus without folds depends on its other fields alone
        left_out.add("cross_validate")
    fields = spec.model_dump(mode="json", exclude=left_out)
    digest.update(json.dumps(fields, sort_keys=True).encode())
    if spec.units == "checkpoint":
        digest.update(_tokenizer_identity(str(spec.tokenizer)))
    folders = [folder, *([storage.absolute(spec.audio_root)] if spec.audio_root else [])]
    for utterance in utterances:
        digest.update(json.dumps(_portable_values(utterance, folders)).encode())
    return digest.hexdigest()[:10]


def _tokenizer_identity(checkpoint: str) -> bytes:
    """The files of a tokenizer, wherever its folder lies; of the hub the name, which is not looked up here."""
    folder = ModelFolder(storage.absolute(checkpoint))
    files = [folder.file(name) for name in (STOCK_TOKENIZER_FILE, GENERATION_FILE)]
    found = [storage.read_bytes(file) for file in files if storage.exists(file)]
    return b"".join(hashlib.sha256(data).digest() for data in found) or checkpoint.encode()


def _portable_values(utterance: Utterance, folders: list[str]) -> list[object]:
    """The utterance without its root: the same files in another folder are the same corpus."""
    inside = next(filter(None, (inside_of(utterance.audio, folder) for folder in folders)), None)
    problem = utterance.problem and (utterance.problem[0], "")
    return replace(utterance, audio=f"/{inside}" if inside else utterance.audio, row="", problem=problem).values()


def _builtin_folder(root: str) -> str:
    """The synthesised corpus: written once for each version, and kept in the store."""
    folder = Store(root).source(f"builtin-{builtin_corpus_id()}")
    if storage.exists(storage.join(folder, "test.jsonl")):
        return folder
    with tempfile.TemporaryDirectory() as written:
        try:
            write_builtin_corpus(Path(written))
        except ImportError as error:
            raise UserError("corpus.path", str(error)) from None
        # The manifests are uploaded last: a folder that has them is complete.
        storage.upload(Path(written) / "audio", storage.join(folder, "audio"))
        for split in ("train", "test"):
            storage.write_bytes(storage.join(folder, f"{split}.jsonl"), (Path(written) / f"{split}.jsonl").read_bytes())
    return folder


# --- Layouts and splits ----------------------------------------------------------------------------


SPLIT_ALIASES = {"valid": VALIDATION_NAMES, "test": ("test", "eval")}
"""The names under which the files or folders of a split are looked for, best first."""


def find_split(layout: str, source: SourceFolder, entry: str) -> list[list[str]]:
    """What a layout finds for an entry of `corpus.splits`: the URIs of each of its parts, [] for a part not found."""
    find = LAYOUTS[layout].find
    if "=" in entry:
        return [find(source, part) for part in sources_of(entry)]
    names = SPLIT_ALIASES.get(entry, (entry,))
    return [next(filter(None, (find(source, name) for name in names)), [])]


def _detect_layout(source: SourceFolder, spec: CorpusSpec) -> str:
    """The layout that the spec names, or the first that finds any of the splits; only listings are requested."""
    if spec.layout != "auto":
        return spec.layout
    for name, layout in LAYOUTS.items():
        found = (uris for entry in spec.splits for uris in find_split(name, source, entry) if uris)
        first = next(found, None)
        if first and layout.looks_right(first[0]):
            return name
    if "dataset_dict.json" in source.files():
        fix = "write its splits as train.parquet, test.parquet with to_parquet()"
        raise UserError("corpus.path", f"{source.root} was written by datasets' save_to_disk; {fix}")
    raise UserError(
        "corpus.path",
        f"{source.root} has none of the known layouts ({', '.join(LAYOUTS)}); write train.jsonl and test.jsonl, "
        'one object a line: {"audio": "clips/a.flac", "text": "HELLO"}, or name its splits in corpus.splits, '
        f"such as [train=A, test=B], where . is the folder itself; {_contents(source)}",
    )


def _find_splits(layout: str, source: SourceFolder, spec: CorpusSpec) -> list[list[str]]:
    """The URIs of each split. Raises UserError for a missing one, except a plain `valid`, which can be carved."""
    found = [find_split(layout, source, entry) for entry in spec.splits]
    example = LAYOUTS[layout].example
    if not any(uris for parts in found for uris in parts):
        raise UserError("corpus.path", f"{source.root} is not laid out as {layout} ({example}); {_contents(source)}")
    for entry, parts in zip(spec.splits, found, strict=True):
        for part, uris in zip(sources_of(entry), parts, strict=True):
            if not uris and entry != "valid":
                others = ",".join(name for name in spec.splits if name != entry)
                name = entry.partition("=")[0]
                fix = f"add it, or name it with corpus.splits=[…,{name}=A], or leave it out with [{others}]"
                expected = example.replace("train", part)
                raise UserError(
                    "corpus.path", f"{source.root} has no {part} ({layout}: {expected}); {_contents(source)}; {fix}"
                )
    joined = [[uri for uris in parts for uri in uris] for parts in found]
    _check_disjoint(joined, spec)
    return joined


def _check_disjoint(found: list[list[str]], spec: CorpusSpec) -> None:
    owner: dict[str, str] = {}
    for entry, uris in zip(spec.splits, found, strict=True):
        for uri in uris:
            if uri in owner:
                raise UserError(
                    "corpus.splits", f"'{owner[uri]}' and '{entry}' both contain {uri}; keep it in one of them"
                )
            owner[uri] = entry


def _contents(source: SourceFolder) -> str:
    names = sorted([*source.files(), *(f"{name}/" for name in source.folders())])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"it contains {', '.join(names[:12]) or 'nothing'}{more}"


def encodable(utterance: Utterance) -> Utterance:
    """The utterance without lone surrogates, which JSON may contain and UTF-8 cannot encode.

    They become '?', and in the text U+FFFD, which is a reason to quarantine it.
    """
    texts = {name: getattr(utterance, name) for name in ("id", "audio", "text", "speaker", "language", "row")}
    try:
        "".join(text or "" for text in texts.values()).encode()
    except UnicodeEncodeError:
        plain = {name: text and text.encode(errors="replace").decode() for name, text in texts.items()}
        text = utterance.text and re.sub("[\ud800-\udfff]", "\ufffd", utterance.text)
        return replace(utterance, **{**plain, "text": text})
    return utterance
