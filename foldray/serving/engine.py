"""A replica's work: from the bytes of an upload to a transcript."""

import asyncio
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from foldray.config.corpus import SAMPLE_RATE
from foldray.data.recording import decode_recording
from foldray.data.samples import BadAudioError
from foldray.errors import UserError
from foldray.results.auto_depth import has_auto
from foldray.serving.budget import Costs, Speed, fit_costs
from foldray.serving.messages import Answer, Ask, ModelFacts, Refusal
from foldray.serving.scheduler import Job, OnResult, Samples, Scheduler, Ticket
from foldray.transcription.chunks import Chunk
from foldray.transcription.files import OpenRecording, Recording, finish, read_chunks
from foldray.transcription.recogniser import DepthChoice, Recogniser

LONGEST_HOURS = 4
"""Longest recording: 25 MB may decode to days of silence."""
CHUNKS_AHEAD = 8
"""Chunks of one request that wait or run at a time, so that a long recording neither fills memory nor the queue."""


class Engine:
    """Transcribes uploads on one model at any of its depths, in batches that mix depths (CTC).

    Models whose text comes from a decoder run batches of one depth.

    Args:
        recogniser: The model.
        depths: The depths that are served; all planned ones by default.
        latency: Budget in seconds for requests that name no depth.
        costs: What batches cost; measured by default.

    Raises:
        UserError: A depth has no path.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        depths: Sequence[int] = (),
        latency: float | None = None,
        costs: Costs | None = None,
    ) -> None:
        self._recogniser = recogniser
        self._depths = tuple(sorted(set(depths))) or recogniser.depths
        for depth in self._depths:
            recogniser.choice(depth)
        self._auto = self._calibrated()
        mixed = recogniser.is_ctc
        speed = Speed(
            costs or fit_costs(self._timed, self._depths if mixed else self._depths[:1], rows=4 if mixed else 1)
        )
        self._scheduler = Scheduler(self._run, self._depths, speed, mixed=mixed, budget=latency)

    def facts(self) -> ModelFacts:
        """What the server tells of the model."""
        special = self._recogniser.tokenizer.special
        codes = tuple(sorted(filter(None, special.prompts))) if special else ()
        return ModelFacts(self._depths, codes, self._recogniser.has_times, self._auto is not None)

    def _calibrated(self) -> DepthChoice | None:
        """The choice of `auto`, if the model is calibrated and its depths are served."""
        if not self._recogniser.has_times or not has_auto(self._recogniser.folder):
            return None
        choice = self._recogniser.choice("auto")
        return choice if set(choice.depths) <= set(self._depths) else None

    async def transcribe(self, data: bytes, ask: Ask) -> Answer | Refusal:
        """Transcribe an audio file. Cancelled, it leaves the queue."""
        auto = self._auto if ask.depth == "auto" else None
        ticket = self._scheduler.ticket(None if ask.depth == "auto" else ask.depth, ask.waited)
        opened: list[OpenRecording] = []
        recording = Recording("audio", functools.partial(_samples, data), ask.language)
        longest = min(self._recogniser.chunk_seconds, self._recogniser.longest)
        chunks = read_chunks(self._recogniser, [recording], opened, longest)
        room = asyncio.Semaphore(CHUNKS_AHEAD)
        tasks: list[asyncio.Task[int]] = []
        try:
            while (each := await asyncio.to_thread(next, chunks, None)) is not None:
                own, number, chunk = each
                if chunk is not None:
                    await room.acquire()
                    times = ask.words or bool(auto) or any(chunk.overlaps)
                    job = Job(chunk.samples, ticket, ask.language, times, paced=len(tasks) >= CHUNKS_AHEAD)
                    tasks.append(asyncio.create_task(self._chunk(own, number, chunk, job, auto, room)))
            batches = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        # Of silence alone no depth has run.
        depth = auto.depths[0] if auto else ticket.depth or self._depths[-1]
        found = await asyncio.to_thread(finish, self._recogniser, opened[0], (depth,), ask.words)
        if isinstance(found, UserError):
            return Refusal(400, f"the file {found.problem}", "invalid_audio", "file")
        return Answer(found[0], tuple(batches))

    async def _chunk(
        self,
        own: OpenRecording,
        number: int,
        chunk: Chunk,
        job: Job,
        auto: DepthChoice | None,
        room: asyncio.Semaphore,
    ) -> int:
        """Run a chunk, at one depth after the other until it is sure enough; returns the rows of its last batch."""
        try:
            for ticket in [Ticket(depth) for depth in auto.depths] if auto else [job.ticket]:
                result, rows = await self._scheduler.result(replace(job, ticket=ticket))
                own.add(number, chunk, [result], ticket.depth or 0)
                if not auto or self._recogniser.confidence(result) >= auto.threshold:
                    break
        finally:
            room.release()
        return rows

    def _run(self, jobs: Sequence[Job], depths: Sequence[int], on_result: OnResult) -> None:
        clips = [job.samples for job in jobs]
        if self._recogniser.is_ctc:
            self._recogniser.paths_by_row(clips, depths, on_result)
            return
        languages = [job.language for job in jobs]
        pieces = self._recogniser.decoded(clips, depths[0], languages, times=jobs[0].times)
        for number, piece in enumerate(pieces):
            on_result(number, piece)

    def _timed(self, lengths: Sequence[float], depths: Sequence[int]) -> float:
        """Run noise, and return the seconds that it took."""
        noise = np.random.default_rng(0).normal(0, 0.1, int(max(lengths) * SAMPLE_RATE)).astype(np.float32)
        jobs = [Job(noise, Ticket(depth)) for depth in depths]
        began = time.perf_counter()
        self._run(jobs, depths, lambda number, result: None)
        return time.perf_counter() - began


def _samples(data: bytes) -> Iterator[Samples]:
    """The samples of an upload; of silence none, since its text is empty."""
    samples = 0
    try:
        for piece_T in decode_recording(data):
            samples += len(piece_T)
            if samples > LONGEST_HOURS * 3600 * SAMPLE_RATE:
                raise UserError("file", f"is longer than {LONGEST_HOURS} hours; split it")
            yield piece_T
    except BadAudioError as bad:
        if bad.reason != "silent":
            raise UserError("file", f"can't be used as audio ({bad.reason}: {bad.detail})") from None
