"""Which utterance goes to which shard, and what metadata alone rules out: settled before anything is decoded."""

import hashlib
from collections import defaultdict
from dataclasses import replace

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import Corpus
from foldray.data.shard import ShardTask, quarantine_entry
from foldray.data.text import normalise
from foldray.data.utterance import Utterance
from foldray.models.tokenizer import Tokenizer
from foldray.storage.layout import shard_file

BUCKETS = 8
GUESSED_BYTES_PER_SECOND = 16_000  # FLAC of speech


def screen(corpus: Corpus, spec: CorpusSpec) -> tuple[list[Utterance], list[dict[str, str]]]:
    """Usable utterances with normalised text, and quarantine entries for what metadata alone rules out."""
    usable, refused, seen = [], [], set[str]()
    for utterance in corpus.utterances:
        text = normalise(utterance.text or "", spec.text)
        refusal = _refusal(utterance, text, seen, spec.text)
        if refusal:
            refused.append(quarantine_entry(utterance, *refusal, corpus.folder))
        else:
            usable.append(replace(utterance, text=text))
            seen.add(utterance.id)
    return usable, refused


def _refusal(utterance: Utterance, text: str, seen: set[str], profile: str) -> tuple[str, str] | None:
    if utterance.problem:
        return utterance.problem
    if utterance.bytes is None:
        mend = "" if storage.is_known(utterance.audio) else "; fetch it into a folder or bucket first"
        return "missing_file", f"no file at {utterance.audio}{mend}"
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
    """Shards of one split and one duration bucket each, filled in the order of hashes."""
    model = tokenizer.subwords if tokenizer else None
    by_split: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_split[utterance.split].append(utterance)
    tasks = []
    for split, members in sorted(by_split.items()):
        for bucket, held in enumerate(_buckets(members)):
            for part, chunk in enumerate(_chunks(held, spec.shard_minutes * 60)):
                file = shard_file(split, bucket, part)
                tasks.append(ShardTask(file, split, chunk, spec, home, model))
    return tasks


def _length(utterance: Utterance) -> float:
    """Seconds as declared, or a guess from the audio's size."""
    return utterance.duration if utterance.duration else (utterance.bytes or 0) / GUESSED_BYTES_PER_SECOND


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
    for utterance in sorted(utterances, key=_place):
        if chunks[-1] and filled + _length(utterance) > seconds:
            chunks.append([])
            filled = 0.0
        chunks[-1].append(utterance)
        filled += _length(utterance)
    return chunks


def _place(utterance: Utterance) -> tuple[bytes, int, bytes]:
    """Utterances by the hash of their id, except that rows of one row group of a Parquet source stay together:
    only whole row groups can be read."""
    key = hashlib.sha256(utterance.id.encode()).digest()
    if utterance.within and utterance.within.kind == "row":
        group = f"{utterance.audio.rsplit('/', 1)[-1]} {utterance.within.first}"
        return hashlib.sha256(group.encode()).digest(), utterance.within.second, key
    return key, 0, key
