"""Which utterance goes to which shard, and what metadata alone rules out: both decided before anything is decoded."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace

from foldray import storage
from foldray.config.corpus import CorpusSpec
from foldray.data.corpora import Corpus
from foldray.data.manifest import LeftOut, QuarantineEntry, quarantine_entry
from foldray.data.shard import ShardTask
from foldray.data.text import left_out, normalise
from foldray.data.utterance import Utterance
from foldray.models.tokenizer import Tokenizer, reserved_in
from foldray.storage.layout import shard_file

MAX_BUCKETS = 8
BUCKET_SECONDS = 300  # a smaller bucket would make shards of a few row groups
_LOST_CHARACTERS = {"\ufffd": "a character was lost in a conversion (U+FFFD)", "\0": "a NUL character"}
BYTES_PER_SECOND = 16_000  # FLAC of speech at 16 kHz, for utterances without a declared duration


def select_usable(corpus: Corpus, spec: CorpusSpec) -> tuple[list[Utterance], list[QuarantineEntry], LeftOut]:
    """Usable utterances with normalised text, quarantine entries for what metadata alone rules out, and what
    normalisation left out of the usable texts."""
    usable, quarantine, seen = [], [], dict[str, str]()
    left = Counter[str]()
    touched = words = 0
    for utterance in corpus.utterances:
        text = normalise(utterance.text or "", spec.text)
        problem = _metadata_problem(utterance, text, seen, spec)
        if problem:
            quarantine.append(quarantine_entry(utterance, *problem, corpus.folder))
        else:
            usable.append(replace(utterance, text=text))
            seen[utterance.id] = storage.relative(utterance.row, corpus.folder)
            characters, whole = left_out(utterance.text or "", spec.text)
            left.update(characters)
            touched += bool(characters)
            words += whole
    return usable, quarantine, LeftOut.of(left, words, touched)


def _metadata_problem(
    utterance: Utterance, text: str, seen: dict[str, str], spec: CorpusSpec
) -> tuple[str, str] | None:
    """Quarantine reason and detail of an utterance; None if its audio is worth decoding."""
    if utterance.problem:
        return utterance.problem
    if utterance.bytes is None:
        return "missing_file", f"no file at {utterance.audio}{_hint(utterance.audio)}"
    if utterance.bytes == 0:
        return "empty_file", "0 bytes"
    if utterance.text is None:
        return "no_text", "the row has no field for the text; name it 'text'"
    if not utterance.text.strip():
        return "no_text", "the text is empty"
    if problem := _text_problem(utterance.text, text, spec):
        return problem
    if utterance.id in seen:
        return "duplicate_id", f"id '{utterance.id}' is already used at {seen[utterance.id]}"
    return None


def _hint(audio: str) -> str:
    """How to fix the place of a missing file, "" where nothing is known."""
    if "\\" in audio:
        return "; write the path with slashes, not backslashes"
    return "" if storage.is_known(audio) else "; fetch it into a folder or bucket first"


def _text_problem(given: str, text: str, spec: CorpusSpec) -> tuple[str, str] | None:
    """Quarantine reason and detail of a text and its normalised form."""
    for lost, meaning in _LOST_CHARACTERS.items():
        if lost in given:
            at = given.index(lost)
            return "bad_text", f"{meaning} at character {at + 1} of '{given[:60]}'; write the text anew from its source"
    if not text:
        return "no_known_characters", f"corpus.text={spec.text} leaves nothing of '{given[:60]}'"
    if spec.units in ("bpe", "unigram") and (token := reserved_in(text)):
        return "bad_text", f"'{token}' has a meaning of its own in sub-words; write it otherwise"
    return None


def plan_shards(
    utterances: list[Utterance], spec: CorpusSpec, home: str, tokenizer: Tokenizer | None
) -> list[ShardTask]:
    """The tasks of all shards. A shard has one split and one duration bucket; ids are spread by their hashes."""
    # The tokenizer of a checkpoint has megabytes: the tasks read it from the corpus.
    subwords = tokenizer.subwords if tokenizer and not tokenizer.special else None
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
