"""Preparation with Ray Data: a corpus becomes Parquet shards, an index, a quarantine and, last, a manifest.

Which utterance goes to which shard is settled from metadata before anything is decoded, and one
task writes one shard whole. So a killed preparation is simply started again: finished shards stay,
and the result is the same.
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foldray import storage
from foldray.data.corpora import Corpus, Utterance
from foldray.data.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    Manifest,
    Shard,
    read_manifest,
)
from foldray.data.shard import ShardTask, index_of_shards, quarantine_entry, write_shard
from foldray.data.text import Units, bpe_units, character_units, normalise, unigram_units
from foldray.errors import UserError
from foldray.session import start_ray
from foldray.spec import CorpusSpec

BUCKETS = 8


def prepare(
    corpus: Corpus,
    spec: CorpusSpec,
    root: str,
    *,
    cpus: float = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, Manifest]:
    """Prepare a corpus under `root`/corpora; returns its URI and manifest. Does nothing if it is there.

    `cpus`: what a local Ray must offer to the stages that follow; `on_progress(done, total)` counts
    shards. Raises UserError where more than `spec.max_quarantine` or a whole split is unusable;
    shards and quarantine stay then.
    """
    folder = storage.join(storage.absolute(root), "corpora", corpus.corpus_id)
    if storage.exists(storage.join(folder, MANIFEST_FILE)):
        return folder, read_manifest(folder)
    usable, refused = _screen(corpus.utterances, spec)
    subwords = _learn_subwords(usable, spec)
    tasks = _plan_shards(usable, spec)
    summaries = _write_shards(tasks, folder, cpus, on_progress)
    quarantine = refused + [entry for summary in summaries for entry in summary["quarantine"]]
    manifest = _describe(corpus, spec, tasks, summaries, quarantine, subwords)
    _write_table(storage.join(folder, QUARANTINE_FILE), pa.Table.from_pylist(quarantine, QUARANTINE_SCHEMA))
    _refuse_too_bad(manifest, spec, folder)
    _write_table(storage.join(folder, INDEX_FILE), index_of_shards(summaries, manifest.units))
    storage.write_json(storage.join(folder, MANIFEST_FILE), manifest.model_dump())
    return folder, manifest


# --- Before decoding -------------------------------------------------------------------------------


def _screen(utterances: list[Utterance], spec: CorpusSpec) -> tuple[list[Utterance], list[dict[str, str]]]:
    """Usable utterances with normalised text, and quarantine entries for what metadata alone rules out."""
    usable, refused, seen = [], [], set[str]()
    for utterance in utterances:
        text = normalise(utterance.text or "", spec.text)
        reason = _refusal(utterance, text, seen)
        if reason:
            refused.append(quarantine_entry(utterance, *reason))
        else:
            usable.append(replace(utterance, text=text))
        seen.add(utterance.id)
    return usable, refused


def _refusal(utterance: Utterance, text: str, seen: set[str]) -> tuple[str, str] | None:
    if utterance.bytes is None:
        return "missing_file", f"no file at {utterance.audio}"
    if utterance.bytes == 0:
        return "empty_file", "0 bytes"
    if utterance.text is None:
        return "no_text", "the row has no field for the text; name it 'text'"
    if not utterance.text.strip():
        return "no_text", "the text is empty"
    if not text:
        return "no_known_characters", f"nothing left of '{utterance.text[:60]}'"
    if utterance.id in seen:
        return "duplicate_id", f"id '{utterance.id}' came before"
    return None


def _learn_subwords(utterances: list[Utterance], spec: CorpusSpec) -> Units | None:
    """Sub-word units from the transcripts of 'train'; None for characters, or without any 'train'.

    They are learned before decoding, so that a size there can't be is refused in seconds, not hours.
    """
    train = [utterance.text for utterance in utterances if utterance.split == "train" and utterance.text]
    if spec.vocab_size is None or not train:
        return None
    return (bpe_units if spec.units == "bpe" else unigram_units)(train, spec.vocab_size)


def _plan_shards(utterances: list[Utterance], spec: CorpusSpec) -> list[ShardTask]:
    """Shards of one split and one duration bucket each, filled in the order of hashed ids."""
    by_split: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_split[utterance.split].append(utterance)
    tasks = []
    for split, members in sorted(by_split.items()):
        for bucket, held in enumerate(_buckets(members)):
            for part, chunk in enumerate(_chunks(held, spec.shard_minutes * 60)):
                tasks.append(ShardTask(f"shards/{split}-{bucket:02d}-{part:05d}.parquet", split, chunk, spec))
    return tasks


def _length(utterance: Utterance) -> float:
    """Seconds as declared, or a guess from the file's size (FLAC of speech takes about 16 kB a second)."""
    return utterance.duration if utterance.duration else (utterance.bytes or 0) / 16_000


def _buckets(utterances: list[Utterance]) -> list[list[Utterance]]:
    """Up to eight duration buckets of about equal audio, none under about five minutes."""
    ordered = sorted(utterances, key=lambda u: (_length(u), u.id))
    total = sum(map(_length, ordered))
    count = max(1, min(BUCKETS, int(total // 300)))
    buckets: list[list[Utterance]] = [[] for _ in range(count)]
    filled = 0.0
    for utterance in ordered:
        buckets[min(count - 1, int(filled * count / total) if total else 0)].append(utterance)
        filled += _length(utterance)
    return [bucket for bucket in buckets if bucket]


def _chunks(utterances: list[Utterance], seconds: float) -> list[list[Utterance]]:
    chunks: list[list[Utterance]] = [[]]
    filled = 0.0
    for utterance in sorted(utterances, key=lambda u: hashlib.sha256(u.id.encode()).digest()):
        if chunks[-1] and filled + _length(utterance) > seconds:
            chunks.append([])
            filled = 0.0
        chunks[-1].append(utterance)
        filled += _length(utterance)
    return chunks


# --- All shards -------------------------------------------------------------------------------------


def _write_shards(
    tasks: list[ShardTask], folder: str, cpus: float, on_progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Summaries of all shards in the order of the tasks; Ray Data spreads the tasks over the cluster."""
    rows = [{"number": i, "task": _dump_task(task), "folder": folder} for i, task in enumerate(tasks)]
    if not rows:
        return []
    ray = start_ray(cpus)
    written = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_write_shard_row)
    summaries: dict[int, dict[str, Any]] = {}
    for row in written.iter_rows():
        summaries[row["number"]] = json.loads(row["summary"])
        on_progress(len(summaries), len(tasks))
    return [summaries[i] for i in range(len(tasks))]


def _dump_task(task: ShardTask) -> str:
    return json.dumps({**asdict(task), "spec": task.spec.model_dump(mode="json")})


def _write_shard_row(row: dict[str, Any]) -> dict[str, Any]:
    values = json.loads(row["task"])
    utterances = [Utterance(**each) for each in values["utterances"]]
    task = ShardTask(values["file"], values["split"], utterances, CorpusSpec(**values["spec"]))
    return {"number": row["number"], "summary": json.dumps(write_shard(task, row["folder"]))}


# --- After all shards ------------------------------------------------------------------------------


def _describe(
    corpus: Corpus,
    spec: CorpusSpec,
    tasks: list[ShardTask],
    summaries: list[dict[str, Any]],
    quarantine: list[dict[str, str]],
    subwords: Units | None,
) -> Manifest:
    shards = [Shard(**summary["shard"]) for summary in summaries]
    train = [text for t, s in zip(tasks, summaries, strict=True) if t.split == "train" for text in s["text"]]
    units = subwords or character_units(train)
    return Manifest(
        corpus_id=corpus.corpus_id,
        source=spec.path,
        layout=corpus.layout,
        utterances_in=len(corpus.utterances),
        utterances_out=sum(shard.rows for shard in shards),
        quarantined=len(quarantine),
        reasons=dict(Counter(entry["reason"] for entry in quarantine).most_common()),
        hours=round(sum(shard.seconds for shard in shards) / 3600, 4),
        vocabulary=units.vocabulary,
        tokenizer=units.tokenizer,
        shards=shards,
    )


def _refuse_too_bad(manifest: Manifest, spec: CorpusSpec, folder: str) -> None:
    share = manifest.quarantined / max(1, manifest.utterances_in)
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.items())
    if share > spec.max_quarantine:
        raise UserError(
            "corpus.max_quarantine",
            f"{manifest.quarantined} of {manifest.utterances_in} utterances are unusable ({reasons}), over the "
            f"limit of {spec.max_quarantine:.0%}; see "
            f"{storage.join(folder, QUARANTINE_FILE)}, mend them or raise the limit",
        )
    for split in sorted({shard.split for shard in manifest.shards} | set(spec.splits) - {"valid"}):
        if not any(shard.rows for shard in manifest.shards if shard.split == split):
            raise UserError(
                "corpus.path", f"{spec.path} has no usable utterances in '{split}' ({reasons or 'it is empty'})"
            )


def _write_table(uri: str, table: pa.Table) -> None:
    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd")
    storage.write_bytes(uri, target.getvalue())
