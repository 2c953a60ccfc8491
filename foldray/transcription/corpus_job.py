"""Transcribing a corpus with Ray Data: actors that hold the model take shards of a plan, and a manifest comes last.

A shard is transcribed by one task and its file is created once, so a job that is killed anywhere is simply started
again: finished shards are read, not repeated. Tasks pass numbers of shards, counts, and the lines
that `--agree` keeps; audio never goes through Ray. An actor holds the audio of some ten minutes, however large the
corpus is.
"""

import functools
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypedDict

from pydantic import BaseModel

from foldray import storage
from foldray.errors import UserError
from foldray.evaluation.beam_options import BeamOptions
from foldray.evaluation.decode import parse_decoding
from foldray.runtime.ray import find_user_error, node_resources, start_ray
from foldray.storage.layout import TranscriptsFolder
from foldray.transcription.corpus_plan import Plan, Settings, read_planned
from foldray.transcription.corpus_shard import ShardSummary, transcribe_shard
from foldray.transcription.recogniser import Recogniser

STARTS = 20
"""How often a shard is begun, after its workers died. Ray would begin it again for ever."""
WAITING = 2
"""Shards that a worker is given: the one it transcribes and the next."""


class TranscriptsManifest(BaseModel):
    """What a transcribed corpus holds. It is written last, so a folder that has one is whole.

    Attributes:
        settings: How it was transcribed.
        utterances: Utterances of the plan; each has one row.
        hours: Hours of audio that have a text.
        errors: Utterances without a text, by reason.
        notes: Utterances whose text may lack something.
        kept: Rows of `corpus/train.jsonl`.
        left_out: Utterances that are no row of it, by reason.
        shards: Rows, seconds and SHA-256 of every shard.
    """

    schema_version: int = 1
    settings: Settings
    utterances: int
    hours: float
    errors: dict[str, int]
    notes: int
    kept: int
    left_out: dict[str, int]
    shards: list[ShardSummary]


@dataclass(frozen=True)
class Progress:
    """How far a job is: shards in all, and shards and hours of audio that this start transcribed."""

    done: int
    total: int
    fresh: int
    fresh_hours: float


def transcribe_plan(
    plan: Plan,
    model: str,
    out: TranscriptsFolder,
    *,
    workers: int | None = None,
    use_gpu: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TranscriptsManifest:
    """Transcribe the shards of a plan that are not there yet, then write the corpus of what is kept and the manifest.

    Args:
        plan: A stored plan.
        model: URI of the model's folder.
        out: The folder of the plan.
        workers: Actors; by default one for each CPU, or each GPU.
        use_gpu: Whether each has a GPU.
        on_progress: Called after every shard.

    Raises:
        UserError: There are no GPUs or CPUs, the model can't be loaded, or a store is unreachable.
    """
    shards: dict[int, tuple[ShardSummary, str]] = {}
    fresh, hours = 0, 0.0
    for row in _run(plan, model, out, workers, use_gpu):
        summary = ShardSummary.model_validate_json(row["summary"])
        shards[summary.number] = summary, row["kept"]
        if row["fresh"]:
            fresh, hours = fresh + 1, hours + summary.seconds / 3600
        on_progress(Progress(len(shards), plan.shards, fresh, hours))
    manifest = _manifest(plan, [shards[number][0] for number in range(plan.shards)])
    if plan.settings.agree:
        lines = "".join(shards[number][1] for number in range(plan.shards))
        storage.write_bytes(out.corpus_rows, lines.encode())
    storage.write_json(out.manifest, manifest.model_dump())
    return manifest


def _manifest(plan: Plan, summaries: list[ShardSummary]) -> TranscriptsManifest:
    errors, left_out = Counter[str](), Counter[str]()
    for summary in summaries:
        errors.update(summary.errors)
        left_out.update(summary.left_out)
    return TranscriptsManifest(
        settings=plan.settings,
        utterances=sum(each.rows for each in summaries),
        hours=round(sum(each.seconds for each in summaries) / 3600, 4),
        errors=dict(errors.most_common()),
        notes=sum(each.notes for each in summaries),
        kept=sum(each.kept for each in summaries),
        left_out=dict(left_out.most_common()),
        shards=summaries,
    )


# --- Ray --------------------------------------------------------------------------------------------


class _Task(TypedDict):
    number: int


class _Done(TypedDict):
    summary: str  # JSON of a ShardSummary
    kept: str
    fresh: bool


class Transcriber:
    """An actor: loads the model with its first shard that needs it, and keeps it.

    An error of loading is an error of a task then, which reaches the driver as it is.
    """

    def __init__(self, model: str, out: str, settings: str, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self._out = TranscriptsFolder(out)
        self._settings = Settings.model_validate_json(settings)
        self._load = functools.cache(functools.partial(load_recogniser, model, self._settings, device))

    def __call__(self, batch: dict[str, Sequence[int]]) -> dict[str, list[object]]:
        """Transcribe shards, by their numbers."""
        done = [self.shard(int(number)) for number in batch["number"]]
        return {name: [row[name] for row in done] for name in _Done.__annotations__}  # type: ignore[literal-required]

    def shard(self, number: int) -> _Done:
        """Transcribe one shard."""
        fresh = not storage.exists(self._out.shard(number))
        if fresh:
            count_start(self._out, number)
        utterances = read_planned(self._out, number)
        summary, kept = transcribe_shard(self._load, self._out, number, utterances, self._settings)
        return {"summary": summary.model_dump_json(), "kept": kept, "fresh": fresh}


def count_start(out: TranscriptsFolder, number: int) -> None:
    """Note that a shard is begun. Raises UserError where its workers died too often."""
    starts = out.starts(number)
    if len(storage.list_files(starts)) >= STARTS:
        problem = f"its workers died {STARTS} times, perhaps out of memory; use fewer --workers or a lower --chunk"
        raise UserError(out.shard(number), f"{problem}, remove {starts} and start the job again")
    storage.write_bytes(storage.join(starts, uuid.uuid4().hex), b"")


def load_recogniser(model: str, settings: Settings, device: str = "cpu") -> Recogniser:
    """Load the model that a plan names. Raises UserError if it can't decode so, or lacks the language."""
    beam = BeamOptions(**settings.beam) if settings.beam else None  # type: ignore[arg-type]
    recogniser = Recogniser(model, parse_decoding(settings.decoding), beam, device)
    recogniser.check_language(settings.language)
    return recogniser


def _run(plan: Plan, model: str, out: TranscriptsFolder, workers: int | None, use_gpu: bool) -> Iterator[_Done]:
    """What became of each shard, in the order in which they end."""
    # Ray Data restarts its actors for ever, and Ray warns of that with a line of its C++ log.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = start_ray(workers or 1)
    number, threads = _workers(ray, workers, plan.shards, use_gpu)
    tasks: list[_Task] = [{"number": i} for i in range(plan.shards)]
    done = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        Transcriber,
        fn_constructor_args=(model, out.uri, plan.settings.model_dump_json(), threads, "cuda" if use_gpu else "cpu"),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=number, max_tasks_in_flight_per_actor=WAITING),
        num_cpus=threads,
        num_gpus=1 if use_gpu else None,
    )
    try:
        yield from done.iter_rows()
    except Exception as error:
        raise find_user_error(error) from error


def _workers(ray: ModuleType, asked: int | None, shards: int, use_gpu: bool) -> tuple[int, int]:
    """How many actors there are, and the threads of each."""
    nodes = node_resources(ray)
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    units = sum(int(node.get("GPU", 0)) for node in nodes) if use_gpu else sum(cpus)
    if not units and use_gpu:
        raise UserError("--use-gpu", "no node of this Ray has a GPU; leave it out")
    if not units:
        fix = "start one that has (`ray start --num-cpus`), or unset RAY_ADDRESS to use this machine alone"
        raise UserError("Ray", f"no node has a CPU for a worker; {fix}")
    workers = max(1, min(asked or units, units, shards))
    return workers, max(1, min(sum(cpus) // workers, min(cpus, default=1)))
