"""Preparation with Ray Data: a corpus becomes Parquet shards, an index, a quarantine and, last, a manifest.

Which utterance goes to which shard is settled from metadata before anything is decoded, and one
task writes one shard whole. So a killed preparation is simply started again: finished shards stay,
and the result is the same.
"""

import io
import json
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import Corpus
from foldray.data.manifest import INDEX_SCHEMA, QUARANTINE_SCHEMA, Manifest, Shard, read_manifest
from foldray.data.shard import ShardTask, WrittenShard, write_shard
from foldray.data.shard_plan import plan_shards, screen
from foldray.data.splits import needed_splits
from foldray.data.utterance import Utterance
from foldray.errors import UserError
from foldray.models.tokenizer import Tokenizer, bpe_tokenizer, character_tokenizer, unigram_tokenizer
from foldray.runtime.ray import start_ray
from foldray.storage.layout import INDEX_FILE, QUARANTINE_FILE, PreparedCorpus, Store


def prepare(
    corpus: Corpus,
    spec: CorpusSpec,
    root: str,
    *,
    cpus: float = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, Manifest]:
    """Prepare a corpus under `root`/corpora; returns its URI and manifest. Does nothing if it is there, whole.

    `cpus`: what a local Ray must offer to the stages that follow; `on_progress(done, total)` counts
    shards. Raises UserError where more than `spec.max_quarantine` or a whole split is unusable;
    shards and quarantine stay then.
    """
    prepared = Store(root).corpus(corpus.corpus_id)
    folder = prepared.uri
    if storage.exists(prepared.manifest):
        manifest = read_manifest(folder)
        if not missing_files(folder, manifest):
            return folder, manifest
    usable, refused = screen(corpus, spec)
    subwords = _learn_subwords(usable, spec)
    tasks = plan_shards(usable, spec, corpus.folder, subwords)
    shards = _write_shards(tasks, folder, cpus, on_progress)
    quarantine = refused + [entry for shard in shards for entry in shard.quarantine]
    manifest = _describe(corpus, spec, shards, quarantine, subwords)
    _write_table(prepared.quarantine, pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA))
    _refuse_too_bad(manifest, spec, folder)
    _write_table(prepared.index, _index(shards))
    storage.write_json(prepared.manifest, manifest.model_dump())
    return folder, manifest


def missing_files(folder: str, manifest: Manifest) -> list[str]:
    """What a manifest speaks of but is not there: tables, and shards that are missing or of another size."""
    there = storage.list_tree(folder)
    shards = [shard.file for shard in manifest.shards if there.get(shard.file) != shard.bytes]
    return shards + [name for name in (INDEX_FILE, QUARANTINE_FILE) if name not in there]


# --- Before decoding -------------------------------------------------------------------------------


def _learn_subwords(utterances: list[Utterance], spec: CorpusSpec) -> Tokenizer | None:
    """A sub-word tokenizer learned from the transcripts of 'train'; None for characters, or without any 'train'.

    They are learned before decoding, so that a size there can't be is refused in seconds, not hours.
    """
    train = [utterance.text for utterance in utterances if utterance.split == "train" and utterance.text]
    if spec.vocab_size is None or not train:
        return None
    return (bpe_tokenizer if spec.units == "bpe" else unigram_tokenizer)(train, spec.vocab_size)


# --- All shards -------------------------------------------------------------------------------------


def _write_shards(
    tasks: list[ShardTask], folder: str, cpus: float, on_progress: Callable[[int, int], None]
) -> list[WrittenShard]:
    """All shards in the order of the tasks; Ray Data spreads the tasks over the cluster."""
    if not tasks:
        return []
    ray = start_ray(cpus)
    rows = [{"number": i, "task": _dump_task(task), "folder": folder} for i, task in enumerate(tasks)]
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_write_shard_row)
    shards: dict[int, WrittenShard] = {}
    try:
        for row in written.iter_rows():
            shards[row["number"]] = _load_shard(row)
            on_progress(len(shards), len(tasks))
    except Exception as error:
        raise _cause(error) from error
    return [shards[i] for i in range(len(tasks))]


def _cause(error: BaseException) -> BaseException:
    """The UserError that a task ended with, such as a store that stayed away; else the error itself."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, UserError):
            return UserError(below.where, below.problem)
        below = getattr(below, "cause", None) or below.__cause__
    return error


def _dump_task(task: ShardTask) -> bytes:
    # A tenth of the text: all tasks of a corpus wait in Ray's object store at once.
    described = {
        **vars(task),
        "spec": task.spec.model_dump(mode="json"),
        "utterances": [u.values() for u in task.utterances],
    }
    return zlib.compress(json.dumps(described).encode(), 1)


def _load_task(data: bytes) -> ShardTask:
    values = json.loads(zlib.decompress(data))
    utterances = [Utterance.of(each) for each in values["utterances"]]
    return ShardTask(**{**values, "utterances": utterances, "spec": CorpusSpec(**values["spec"])})


def _write_shard_row(row: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)  # resampling: the cores are shared with the other tasks
    written = write_shard(_load_task(row["task"]), row["folder"])
    summary = {
        "shard": written.shard.model_dump(),
        "quarantine": written.quarantine,
        "characters": written.characters,
    }
    index = io.BytesIO()
    with pa.ipc.new_stream(index, written.index.schema) as stream:
        stream.write_table(written.index)
    return {"number": row["number"], "summary": json.dumps(summary), "index": index.getvalue()}


def _load_shard(row: dict[str, Any]) -> WrittenShard:
    summary = json.loads(row["summary"])
    index = pa.ipc.open_stream(row["index"]).read_all()
    return WrittenShard(Shard(**summary["shard"]), index, summary["quarantine"], summary["characters"])


# --- After all shards ------------------------------------------------------------------------------


def _index(shards: list[WrittenShard]) -> pa.Table:
    """The index of all shards, which their numbers in the manifest make one."""
    place = INDEX_SCHEMA.get_field_index("shard")
    numbered = [
        shard.index.set_column(place, INDEX_SCHEMA.field(place), pa.array(np.full(len(shard.index), i, dtype=np.int32)))
        for i, shard in enumerate(shards)
    ]
    return pa.concat_tables(numbered)


def _describe(
    corpus: Corpus,
    spec: CorpusSpec,
    written: list[WrittenShard],
    quarantine: list[dict[str, str]],
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


MENDS = {
    "no_known_characters": "say corpus.text=unicode for other scripts than Latin,",
    "too_long": "raise corpus.max_seconds",
    "too_short": "lower corpus.min_seconds",
    "labels_longer_than_frames": "lower corpus.frame_seconds",
    "missing_file": "say in corpus.audio_root where relative audio paths begin",
}
"""What helps against a reason that most of the unusable utterances share."""


def _refuse_too_bad(manifest: Manifest, spec: CorpusSpec, folder: str) -> None:
    share = manifest.quarantined / max(1, manifest.utterances_in)
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.items())
    if share > spec.max_quarantine:
        mend = MENDS.get(next(iter(manifest.reasons)), "mend them")
        raise UserError(
            "corpus.max_quarantine",
            f"{manifest.quarantined} of {manifest.utterances_in} utterances are unusable ({reasons}), over the "
            f"limit of {spec.max_quarantine:.0%}; see "
            f"{PreparedCorpus(folder).quarantine}, {mend} or raise the limit",
        )
    for split in sorted(needed_splits(spec)):
        if not any(shard.rows for shard in manifest.shards if shard.split == split):
            raise UserError(
                "corpus.path", f"{spec.path} has no usable utterances in '{split}' ({reasons or 'it is empty'})"
            )


def _write_table(uri: str, table: pa.Table) -> None:
    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())
