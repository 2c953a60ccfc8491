"""What is transcribed, how, and in which shards: stored first, so that every start of a job does the same work.

A plan is one Parquet file that is created once. Each of its row groups is a shard; its metadata are the settings.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from foldray import storage
from foldray.data.utterance import Utterance
from foldray.errors import DamagedFileError, UserError, one_line
from foldray.storage.layout import TranscriptsFolder
from foldray.storage.parquet import check_names, read_footer, read_row_group
from foldray.storage.records import check_as

BYTES_PER_SECOND = 16_000
"""FLAC of speech at 16 kHz, for utterances without a declared duration."""
LEAST_SHARD_SECONDS, MOST_SHARD_SECONDS, WANTED_SHARDS = 120.0, 900.0, 64
"""A corpus has at least so many shards, unless they would be shorter than the least: workers end at the same time."""
MOST_ROWS = 1000
"""Most utterances of a shard: sizes tell nothing of a file that is not audio."""

_SETTINGS, _LISTING = b"foldray.settings", b"foldray.listing"
_SCHEMA = pa.schema([("utterance", pa.string())])


class Agreement(BaseModel):
    """Which transcripts are kept: those whose depths differ in at most a share of the words.

    Attributes:
        most: Largest WER of the shallow text against the deep one, as a fraction.
        depths: The shallow and the deep one.
    """

    model_config = ConfigDict(frozen=True)
    most: float
    depths: tuple[int, int]


class Settings(BaseModel):
    """What the transcripts depend on, apart from the audio.

    Attributes:
        source: What was given: corpora, folders, files.
        splits: The splits that are read; all if empty.
        model: Name of the model.
        model_digest: Ten hexadecimal digits of its files.
        depth: The depth of the texts; `auto` chooses one for each part of a recording.
        decoding: How they are decoded.
        beam: Options of the beam search; empty for the defaults.
        language: Language code of utterances that have none.
        chunk_seconds: Longest part that the model runs on at once; None for the model's own.
        agree: Which transcripts are kept; None without a corpus of them.
    """

    model_config = ConfigDict(frozen=True)
    source: list[str]
    splits: list[str] = []
    model: str
    model_digest: str
    depth: int | Literal["auto"]
    decoding: str
    beam: dict[str, int | float | str] = {}
    language: str = ""
    chunk_seconds: float | None
    agree: Agreement | None = None

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits of all of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Plan:
    """A stored plan.

    Attributes:
        settings: How it is transcribed.
        shards: Number of shards.
        utterances: Number of utterances.
        listing: Digest of all utterances and the sizes of their audio.
    """

    settings: Settings
    shards: int
    utterances: int
    listing: str


def store_plan(out: TranscriptsFolder, settings: Settings, utterances: Sequence[Utterance]) -> Plan:
    """Create the plan of a folder, unless it has one, which then counts.

    Returns:
        The plan in the folder. Its `listing` may be that of an earlier state of the corpus.

    Raises:
        UserError: The folder belongs to other settings; names the first that differs.
    """
    if not storage.exists(out.plan):
        shards = plan_shards(utterances)
        # Of two drivers that start at once, one creates it.
        storage.create(out.plan, _encode(settings, shards, listing_digest(utterances)))
    plan = read_plan(out)
    for field in Settings.model_fields:
        theirs, ours = getattr(plan.settings, field), getattr(settings, field)
        if theirs != ours:
            raise UserError("--out", f"{out.uri} was begun with {field}={theirs}, not {ours}; name another folder")
    return plan


def plan_shards(utterances: Sequence[Utterance]) -> list[list[Utterance]]:
    """Cut utterances into shards of about equal audio, in their order: a function of nothing else.

    A repeated id gets the problem duplicate_id.

    Example:
        >>> [len(shard) for shard in plan_shards(three_hours_in_clips_of_10_s)[:2]]
        [16, 16]
    """
    unique = list(_unique(utterances))
    total = sum(map(seconds_of, unique))
    wanted = min(max(total / WANTED_SHARDS, LEAST_SHARD_SECONDS), MOST_SHARD_SECONDS)
    shards: list[list[Utterance]] = [[]]
    filled = 0.0
    for utterance in unique:
        if shards[-1] and (filled + seconds_of(utterance) > wanted or len(shards[-1]) >= MOST_ROWS):
            shards.append([])
            filled = 0.0
        shards[-1].append(utterance)
        filled += seconds_of(utterance)
    return [shard for shard in shards if shard]


def _unique(utterances: Sequence[Utterance]) -> Iterator[Utterance]:
    first: dict[str, str] = {}
    for each in utterances:
        if each.id in first and not each.problem:
            yield replace(each, problem=("duplicate_id", f"id '{each.id}' is already used at {first[each.id]}"))
        else:
            yield each
        if not each.problem:
            first.setdefault(each.id, each.row)


def seconds_of(utterance: Utterance) -> float:
    """Seconds as declared, or an estimate from the size of the audio."""
    return utterance.duration if utterance.duration else (utterance.bytes or 0) / BYTES_PER_SECOND


def listing_digest(utterances: Sequence[Utterance]) -> str:
    """A digest of all utterances and the sizes of their audio."""
    digest = hashlib.sha256()
    for each in utterances:
        digest.update(json.dumps(each.values()).encode())
    return digest.hexdigest()[:16]


def _encode(settings: Settings, shards: Sequence[Sequence[Utterance]], listing: str) -> bytes:
    metadata = {_SETTINGS: settings.model_dump_json().encode(), _LISTING: listing.encode()}
    target = io.BytesIO()
    with pq.ParquetWriter(target, _SCHEMA.with_metadata(metadata), compression="zstd") as writer:
        for shard in shards:
            rows = pa.table({"utterance": [json.dumps(asdict(each)) for each in shard]}, _SCHEMA)
            writer.write_table(rows, row_group_size=len(shard))
    return target.getvalue()


def read_plan(out: TranscriptsFolder) -> Plan:
    """The plan of a folder. Raises DamagedFileError if it is not one."""
    try:
        footer = read_footer(out.plan)
        metadata = footer.schema.to_arrow_schema().metadata or {}
        settings = check_as(Settings, json.loads(metadata[_SETTINGS]), out.plan)
        return Plan(settings, footer.num_row_groups, footer.num_rows, metadata[_LISTING].decode())
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DamagedFileError(out.plan, f"is not a plan ({one_line(error)}); name another folder") from None


def read_planned(out: TranscriptsFolder, number: int) -> list[Utterance]:
    """The utterances of a shard of the plan. Raises DamagedFileError if the plan can't be read."""
    try:
        table = read_row_group(out.plan, number, _SCHEMA.names, footer=_footer(out.plan))
        check_names(table.schema, _SCHEMA.names)
        return [check_as(Utterance, json.loads(row), out.plan) for row in table["utterance"].to_pylist()]
    except (pa.ArrowException, ValueError) as error:
        raise DamagedFileError(out.plan, f"is damaged ({one_line(error)}); name another folder") from None


@functools.lru_cache(maxsize=8)
def _footer(uri: str) -> pq.FileMetaData:
    """Footers are read once: a worker reads one shard after the other."""
    return read_footer(uri)
