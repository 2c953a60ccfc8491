"""Preparation with Ray Data: a corpus becomes Parquet shards, an index, a quarantine and, last, a manifest.

Which utterance goes to which shard is decided from metadata before anything is decoded, and one task writes one
shard. So a killed preparation is simply started again: finished shards stay, and the result is the same.
"""

import pickle
import zlib
from collections import Counter
from collections.abc import Callable
from typing import TypedDict

import numpy as np
import pyarrow as pa

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import Corpus
from foldray.data.manifest import INDEX_SCHEMA, QUARANTINE_SCHEMA, Manifest, QuarantineEntry, read_manifest
from foldray.data.shard import ShardTask, WrittenShard, write_shard
from foldray.data.shard_plan import plan_shards, select_usable
from foldray.data.splits import needed_splits
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.models.tokenizer import Tokenizer, bpe_tokenizer, character_tokenizer, unigram_tokenizer
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
    usable, quarantine = select_usable(corpus, spec)
    subwords = _learn_subwords(usable, spec)
    tasks = plan_shards(usable, spec, corpus.folder, subwords)
    shards = _write_shards(tasks, folder, cpus, on_progress)
    quarantine += [entry for shard in shards for entry in shard.quarantine]
    manifest = _manifest(corpus, spec, shards, quarantine, subwords)
    write_table(prepared.quarantine, pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA))
    _check_usable(manifest, spec, folder)
    write_table(prepared.index, _index(shards))
    storage.write_json(prepared.manifest, manifest.model_dump())
    return folder, manifest


def missing_files(folder: str, manifest: Manifest) -> list[str]:
    """Files that a manifest names but that are missing, or (shards) of another size."""
    sizes = storage.list_tree(folder)
    shards = [shard.file for shard in manifest.shards if sizes.get(shard.file) != shard.bytes]
    return shards + [name for name in (INDEX_FILE, QUARANTINE_FILE) if name not in sizes]


def _learn_subwords(utterances: list[Utterance], spec: CorpusSpec) -> Tokenizer | None:
    """A sub-word tokenizer learned from the transcripts of 'train'; None for characters, or without any 'train'.

    They are learned before decoding, so that an impossible vocabulary size is refused in seconds, not hours.
    """
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
            shards[row["number"]] = pickle.loads(zlib.decompress(row["shard"]))
            on_progress(len(shards), len(tasks))
    except Exception as error:
        raise find_user_error(error) from error
    return [shards[i] for i in range(len(tasks))]


def _write_shard_row(row: _TaskRow) -> _ShardRow:
    import torch

    torch.set_num_threads(1)  # for resampling: the cores are shared with the other tasks
    task: ShardTask = pickle.loads(zlib.decompress(row["task"]))
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
        vocabulary=tokenizer.vocabulary,
        subwords=tokenizer.subwords,
        shards=shards,
    )


FIXES = {
    "no_known_characters": "set corpus.text=unicode for scripts other than Latin",
    "too_long": "raise corpus.max_seconds",
    "too_short": "lower corpus.min_seconds",
    "labels_longer_than_frames": "lower corpus.frame_seconds",
    "missing_file": "set corpus.audio_root to the folder that relative audio paths start from",
}
"""How to fix the reason that most of the unusable utterances share."""


def _check_usable(manifest: Manifest, spec: CorpusSpec, folder: str) -> None:
    share = manifest.quarantined / max(1, manifest.utterances_in)
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.items())
    if share > spec.max_quarantine:
        fix = FIXES.get(next(iter(manifest.reasons)), "fix them")
        raise UserError(
            "corpus.max_quarantine",
            f"{manifest.quarantined} of {manifest.utterances_in} utterances are unusable ({reasons}), over the "
            f"limit of {spec.max_quarantine:.0%}; see "
            f"{PreparedCorpus(folder).quarantine}, {fix} or raise the limit",
        )
    for split in sorted(needed_splits(spec)):
        if not any(shard.rows for shard in manifest.shards if shard.split == split):
            raise UserError(
                "corpus.path", f"{spec.path} has no usable utterances in '{split}' ({reasons or 'it is empty'})"
            )
