"""Which utterance goes to which shard, and what metadata alone rules out: both decided before anything is decoded."""

import hashlib
from collections import defaultdict
from dataclasses import replace

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import Corpus
from foldray.data.manifest import QuarantineEntry, quarantine_entry
from foldray.data.shard import ShardTask
from foldray.data.text import normalise
from foldray.data.utterance import Utterance
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import shard_file

MAX_BUCKETS = 8
BUCKET_SECONDS = 300  # a smaller bucket would make shards of a few row groups
BYTES_PER_SECOND = 16_000  # FLAC of speech at 16 kHz, for utterances without a declared duration


def select_usable(corpus: Corpus, spec: CorpusSpec) -> tuple[list[Utterance], list[QuarantineEntry]]:
    """Usable utterances with normalised text, and quarantine entries for what metadata alone rules out."""
    usable, quarantine, seen = [], [], set[str]()
    for utterance in corpus.utterances:
        text = normalise(utterance.text or "", spec.text)
        problem = _metadata_problem(utterance, text, seen, spec.text)
        if problem:
            quarantine.append(quarantine_entry(utterance, *problem, corpus.folder))
        else:
            usable.append(replace(utterance, text=text))
            seen.add(utterance.id)
    return usable, quarantine


def _metadata_problem(utterance: Utterance, text: str, seen: set[str], profile: str) -> tuple[str, str] | None:
    """Quarantine reason and detail of an utterance; None if its audio is worth decoding."""
    if utterance.problem:
        return utterance.problem
    if utterance.bytes is None:
        hint = "" if storage.is_known(utterance.audio) else "; fetch it into a folder or bucket first"
        return "missing_file", f"no file at {utterance.audio}{hint}"
    if utterance.bytes == 0:
        return "empty_file", "0 bytes"
    if utterance.text is None:
        return "no_text", "the row has no field for the text; name it 'text'"
    if not utterance.text.strip():
        return "no_text", "the text is empty"
    if not text:
        return "no_known_characters", f"corpus.text={profile} leaves nothing of '{utterance.text[:60]}'"
    if utterance.id in seen:
        return "duplicate_id", f"id '{utterance.id}' came before"
    return None


def plan_shards(
    utterances: list[Utterance], spec: CorpusSpec, home: str, tokenizer: Tokenizer | None
) -> list[ShardTask]:
    """The tasks of all shards. A shard has one split and one duration bucket; ids are spread by their hashes."""
    subwords = tokenizer.subwords if tokenizer else None
    by_split: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_split[utterance.split].append(utterance)
    tasks = []
    for split, members in sorted(by_split.items()):
        for bucket, in_bucket in enumerate(_duration_buckets(members)):
            for part, chunk in enumerate(_shard_chunks(in_bucket, spec.shard_minutes * 60)):
                file = shard_file(split, bucket, part)
                tasks.append(ShardTask(file, split, chunk, spec, home, subwords))
    return tasks


def _seconds(utterance: Utterance) -> float:
    """Seconds as declared, or an estimate from the size of the audio."""
    return utterance.duration if utterance.duration else (utterance.bytes or 0) / BYTES_PER_SECOND


def _duration_buckets(utterances: list[Utterance]) -> list[list[Utterance]]:
    """Up to `MAX_BUCKETS` buckets of similar durations and about equal audio, at least `BUCKET_SECONDS` each."""
    ordered = sorted(utterances, key=lambda u: (_seconds(u), u.id))
    total = sum(map(_seconds, ordered))
    count = max(1, min(MAX_BUCKETS, int(total // BUCKET_SECONDS)))
    buckets: list[list[Utterance]] = [[] for _ in range(count)]
    filled = 0.0
    for utterance in ordered:
        buckets[min(count - 1, int(filled * count / total) if total else 0)].append(utterance)
        filled += _seconds(utterance)
    return [bucket for bucket in buckets if bucket]


def _shard_chunks(utterances: list[Utterance], seconds: float) -> list[list[Utterance]]:
    """The utterances in shard order, cut into pieces of about `seconds`."""
    chunks: list[list[Utterance]] = [[]]
    filled = 0.0
    for utterance in sorted(utterances, key=_shard_order):
        if chunks[-1] and filled + _seconds(utterance) > seconds:
            chunks.append([])
            filled = 0.0
        chunks[-1].append(utterance)
        filled += _seconds(utterance)
    return chunks


def _shard_order(utterance: Utterance) -> tuple[bytes, int, bytes]:
    """Sort key: the hash of the id, except that rows of one row group of a Parquet source stay together, because only
    whole row groups can be read."""
    key = hashlib.sha256(utterance.id.encode()).digest()
    entry = utterance.entry
    if entry and entry.kind == "row":
        group = f"{utterance.audio.rsplit('/', 1)[-1]} {entry.first}"
        return hashlib.sha256(group.encode()).digest(), entry.second, key
    return key, 0, key
