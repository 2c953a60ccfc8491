"""Preparation with Ray Data: a corpus becomes Parquet shards, an index, a quarantine and, last, a manifest.

Which utterance goes to which shard is decided from metadata before anything is decoded, and one task writes one
shard. So a killed preparation is simply started again: finished shards stay, and the result is the same.
"""

import pickle
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypedDict

import numpy as np
import pyarrow as pa

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import Corpus
from foldray.data.manifest import INDEX_SCHEMA, QUARANTINE_SCHEMA, LeftOut, Manifest, QuarantineEntry, read_manifest
from foldray.data.shard import ShardTask, WrittenShard, write_shard
from foldray.data.shard_plan import plan_shards, select_usable
from foldray.data.splits import needed_splits
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.models.tokenizer import Tokenizer
from foldray.models.train_tokenizer import bpe_tokenizer, character_tokenizer, unigram_tokenizer
from foldray.runtime.ray import find_user_error, start_ray
from foldray.storage.layout import INDEX_FILE, QUARANTINE_FILE, PreparedCorpus, Store
from foldray.storage.parquet import write_table


def prepare(
    corpus: Corpus,
    spec: CorpusSpec,
    root: str,
    *,
    cpus: float = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, Manifest]:
    """Prepare a corpus under `root`/corpora. Does nothing if that is already complete.

    Args:
        corpus: What `find_corpus` found.
        spec: The recipe's `corpus` section.
        root: The store.
        cpus: CPUs that a local Ray must offer to the stages that follow.
        on_progress: Called with the number of shards done and in total.

    Returns:
        The URI of the prepared corpus, and its manifest.

    Raises:
        UserError: More than `spec.max_quarantine` of the utterances or a whole split are unusable. Shards and
            quarantine are kept.
    """
    prepared = Store(root).corpus(corpus.corpus_id)
    folder = prepared.uri
    if storage.exists(prepared.manifest):
        manifest = read_manifest(folder)
        if not missing_files(folder, manifest):
            return folder, manifest
    usable, quarantine, left_out = select_usable(corpus, spec)
    subwords = _tokenizer_of(usable, spec)
    if subwords and subwords.special:
        storage.write_json(prepared.tokenizer, asdict(subwords))
    tasks = plan_shards(usable, spec, corpus.folder, subwords)
    shards = _write_shards(tasks, folder, cpus, on_progress)
    quarantine += [entry for shard in shards for entry in shard.quarantine]
    manifest = _manifest(corpus, spec, shards, quarantine, subwords, left_out)
    write_table(prepared.quarantine, pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA))
    _check_usable(manifest, spec, folder, quarantine)
    write_table(prepared.index, _index(shards))
    storage.write_json(prepared.manifest, manifest.model_dump())
    return folder, manifest


def missing_files(folder: str, manifest: Manifest) -> list[str]:
    """Files that a manifest names but that are missing, or (shards) of another size."""
    sizes = storage.list_tree(folder)
    shards = [shard.file for shard in manifest.shards if sizes.get(shard.file) != shard.bytes]
    return shards + [name for name in (INDEX_FILE, QUARANTINE_FILE) if name not in sizes]


def _tokenizer_of(utterances: list[Utterance], spec: CorpusSpec) -> Tokenizer | None:
    """The checkpoint's tokenizer, or sub-words learned from 'train'; None for characters, or without any 'train'.

    They are learned before decoding, so that an impossible vocabulary size is refused in seconds, not hours.
    """
    if spec.units == "checkpoint":
        from foldray.models.stock_tokenizer import read_stock_tokenizer

        return read_stock_tokenizer(str(spec.tokenizer))
    train = [utterance.text for utterance in utterances if utterance.split == "train" and utterance.text]
    if spec.vocab_size is None or not train:
        return None
    return (bpe_tokenizer if spec.units == "bpe" else unigram_tokenizer)(train, spec.vocab_size)


# --- Writing all shards -----------------------------------------------------------------------------


class _TaskRow(TypedDict):
    """A row of the Ray dataset that spreads the tasks."""

    number: int
    task: bytes  # a ShardTask, packed
    folder: str


class _ShardRow(TypedDict):
    """What a task returns."""

    number: int
    shard: bytes  # a WrittenShard, packed


def _write_shards(
    tasks: list[ShardTask], folder: str, cpus: float, on_progress: Callable[[int, int], None]
) -> list[WrittenShard]:
    """Write all shards, in the order of the tasks; Ray Data spreads them over the cluster."""
    if not tasks:
        return []
    ray = start_ray(cpus)
    rows: list[_TaskRow] = [{"number": i, "task": _pack(task), "folder": folder} for i, task in enumerate(tasks)]
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_write_shard_row)
    shards: dict[int, WrittenShard] = {}
    try:
        for row in written.iter_rows():
            shards[row["number"]] = pickle.loads(zlib.decompress(row["shard"]))  # noqa: TID251  # of our own task
            on_progress(len(shards), len(tasks))
    except Exception as error:
        raise find_user_error(error) from error
    return [shards[i] for i in range(len(tasks))]


def _write_shard_row(row: _TaskRow) -> _ShardRow:
    import torch

    torch.set_num_threads(1)  # for resampling: the cores are shared with the other tasks
    task: ShardTask = pickle.loads(zlib.decompress(row["task"]))  # noqa: TID251  # of our own driver
    return {"number": row["number"], "shard": _pack(write_shard(task, row["folder"]))}


def _pack(value: ShardTask | WrittenShard) -> bytes:
    """Compressed, because all tasks of a corpus wait in Ray's object store at once."""
    return zlib.compress(pickle.dumps(value), 1)


# --- After all shards -------------------------------------------------------------------------------


def _index(shards: list[WrittenShard]) -> pa.Table:
    """The index of all shards, with the number of each shard in the manifest."""
    column = INDEX_SCHEMA.get_field_index("shard")
    field = INDEX_SCHEMA.field(column)
    numbers = (pa.array(np.full(len(shard.index), i, dtype=np.int32)) for i, shard in enumerate(shards))
    return pa.concat_tables(
        [shard.index.set_column(column, field, number) for shard, number in zip(shards, numbers, strict=True)]
    )


def _manifest(
    corpus: Corpus,
    spec: CorpusSpec,
    written: list[WrittenShard],
    quarantine: list[QuarantineEntry],
    subwords: Tokenizer | None,
    left_out: LeftOut,
) -> Manifest:
    shards = [each.shard for each in written]
    tokenizer = subwords or character_tokenizer(each.characters for each in written if each.shard.split == "train")
    return Manifest(
        corpus_id=corpus.corpus_id,
        source=spec.path,
        layout=corpus.layout,
        utterances_in=len(corpus.utterances),
        utterances_out=sum(shard.rows for shard in shards),
        quarantined=len(quarantine),
        reasons=dict(Counter(entry["reason"] for entry in quarantine).most_common()),
        hours=round(sum(shard.seconds for shard in shards) / 3600, 4),
        left_out=left_out,
        vocabulary=tokenizer.vocabulary,
        subwords=tokenizer.subwords,
        special=tokenizer.special,
        text=spec.text,
        shards=shards,
    )


FIXES = {
    "no_known_characters": "set corpus.text=unicode for scripts other than Latin",
    "too_long": "raise corpus.max_seconds",
    "too_short": "lower corpus.min_seconds",
    "too_many_tokens": "cut the audio and its text into shorter utterances",
    "labels_longer_than_frames": "lower corpus.frame_seconds",
    "unsupported_format": "write the audio as FLAC or OGG, for example with ffmpeg",
    "truncated": "fetch the files again",
    "antiphase": "give each row a `channel`",
    "longer_than_declared": "correct the durations",
    "missing_file": "set corpus.audio_root to the folder that relative audio paths start from",
    "not_utf8": "convert the texts to UTF-8, such as with `iconv -f WINDOWS-1252 -t UTF-8`",
    "duplicate_id": "give every utterance an id of its own",
    "no_text": "give every utterance its text (in a folder: a.txt beside a.wav); transcribe --agree makes some",
}
"""How to fix the reason that most of the unusable utterances share."""


def _check_usable(manifest: Manifest, spec: CorpusSpec, folder: str, quarantine: list[QuarantineEntry]) -> None:
    share = manifest.quarantined / max(1, manifest.utterances_in)
    if share > spec.max_quarantine:
        fix = FIXES.get(next(iter(manifest.reasons)), "fix them")
        # Where several utterances have one id, a higher limit would only hide that most of them are missing.
        fix = fix if "duplicate_id" in manifest.reasons or share == 1 else f"{fix}, or raise the limit"
        raise UserError(
            "corpus.max_quarantine",
            f"{manifest.quarantined} of {manifest.utterances_in} utterances are unusable "
            f"({_counted(manifest.reasons)}), over the limit of {spec.max_quarantine:.0%}; see "
            f"{PreparedCorpus(folder).quarantine}; {fix}",
        )
    for split in sorted(needed_splits(spec) | {entry["split"] for entry in quarantine}):
        if not manifest.rows_by_split.get(split):
            reasons = Counter(entry["reason"] for entry in quarantine if entry["split"] == split)
            raise UserError(
                "corpus.path",
                f"{spec.path} has no usable utterances in '{split}' ({_counted(reasons) or 'it is empty'}); "
                f"{FIXES.get(next(iter(reasons), ''), 'fix them')}, or leave '{split}' out of corpus.splits",
            )


def _counted(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts, most first."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())
