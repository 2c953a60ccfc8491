"""Batches of clips at mixed depths: whatever waits goes in, and each clip is answered when its depth is reached."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from foldray.config.corpus import SAMPLE_RATE
from foldray.serving.budget import Load, Speed, deepest_in_time

Samples = npt.NDArray[np.float32]
OnResult = Callable[[int, Any], None]

BATCH_SECONDS = 40.0
"""Padded audio in one batch: more makes batches no faster, and answers later."""


@dataclass
class Ticket:
    """The depth of all clips of one request, and when its answer is due; without a depth, the budget chooses it."""

    depth: int | None
    due: float = float("inf")


@dataclass(eq=False)
class Job:
    """A clip for the model.

    Attributes:
        samples: Samples (T,) at 16 kHz.
        ticket: Its request's.
        language, times: Options of a decoder.
        paced: Whether it comes once an earlier clip of its request has run. Such clips never come faster than they run,
            so they are no load that a queue could grow from.
    """

    samples: Samples
    ticket: Ticket
    language: str = ""
    times: bool = False
    paced: bool = False
    future: "asyncio.Future[tuple[Any, int]]" = field(init=False, repr=False)

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return len(self.samples) / SAMPLE_RATE


Run = Callable[[Sequence[Job], Sequence[int], OnResult], None]


class Scheduler:
    """Runs the model on batches in a thread of its own, one after the other.

    Args:
        run: Runs a batch with a depth for each job, and calls back with each job's number and result.
        depths: The depths that the budget chooses from, shallowest first.
        speed: Predicts the times of batches.
        mixed: Whether a batch may mix depths; otherwise it has one depth and the same options.
        budget: Seconds from a request to its answer; None without.
    """

    def __init__(
        self, run: Run, depths: Sequence[int], speed: Speed, *, mixed: bool = True, budget: float | None = None
    ) -> None:
        self._run, self._depths, self._speed = run, tuple(depths), speed
        self._mixed, self._budget = mixed, budget
        self._waiting: list[Job] = []
        self._load = Load()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._loop_task: asyncio.Task[None] | None = None

    def ticket(self, depth: int | None, waited: float = 0.0) -> Ticket:
        """A ticket for a request that arrived `waited` seconds ago."""
        if self._budget is None:
            return Ticket(depth or self._depths[-1])
        return Ticket(depth, time.monotonic() + self._budget - waited)

    async def result(self, job: Job) -> tuple[Any, int]:
        """Wait for a job's result; also returns the number of jobs in its batch. Cancelled, it leaves the queue."""
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._serve())
        job.future = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        if not job.paced:
            self._load.add(job.seconds, time.monotonic())
        self._arrived.set()
        try:
            return await job.future
        finally:
            if job in self._waiting:
                self._waiting.remove(job)

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._waiting:
                self._arrived.clear()
                continue
            batch = self._take()
            await self._answer(batch, self._choose(batch))

    def _take(self) -> list[Job]:
        """Take a batch out of the queue: the job that waits longest, and what fits to it."""
        oldest = self._waiting[0]
        alike = [job for job in self._waiting if self._mixed or _options(job) == _options(oldest)]
        batch = _in_time(alike, self._speed, self._depths, self._budget) if self._budget else _of_like_length(alike)
        self._waiting = [job for job in self._waiting if job not in batch]
        return sorted(batch, key=lambda job: job.seconds)

    def _choose(self, batch: Sequence[Job]) -> list[int]:
        """The depth of each job; one that the budget chooses is written on the ticket."""
        if self._budget is not None and any(job.ticket.depth is None for job in batch):
            now = time.monotonic()
            behind = self._speed.seconds([job.seconds for job in self._waiting], [self._depths[0]] * len(self._waiting))
            slack = min(_first_due(batch), _first_due(self._waiting) - behind) - now
            depth = deepest_in_time(
                self._speed, self._depths, [job.seconds for job in batch], [job.ticket.depth for job in batch],
                slack, self._budget, self._load.at(now),
            )  # fmt: skip
            for job in batch:
                job.ticket.depth = job.ticket.depth or depth
        return [job.ticket.depth or self._depths[-1] for job in batch]

    async def _answer(self, batch: Sequence[Job], depths: Sequence[int]) -> None:
        """Run a batch and resolve its futures. If it fails, its jobs run one by one: one may spoil all others."""
        loop = asyncio.get_running_loop()

        def on_result(number: int, result: Any) -> None:
            loop.call_soon_threadsafe(_resolve, batch[number].future, (result, len(batch)))

        began = time.monotonic()
        try:
            await loop.run_in_executor(self._thread, self._run, batch, depths, on_result)
            self._speed.learn([job.seconds for job in batch], depths, time.monotonic() - began)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0].future, error)
                return
            for job, depth in zip(batch, depths, strict=True):
                if not job.future.done():
                    await self._answer([job], [depth])


def _first_due(jobs: Sequence[Job]) -> float:
    """When the first answer is due of those that leave their depth to the budget.

    Others count for nothing: the later clips of a long upload have its depth, and run when its answer is overdue.
    """
    return min((job.ticket.due for job in jobs if job.ticket.depth is None), default=math.inf)


def _options(job: Job) -> tuple[int | None, bool]:
    return job.ticket.depth, job.times


def _of_like_length(jobs: Sequence[Job]) -> list[Job]:
    """The first job and those next to it in length, up to BATCH_SECONDS of padded audio."""
    ranked = sorted(jobs, key=lambda job: job.seconds)
    low = high = ranked.index(jobs[0])
    while True:
        fits = [
            (abs(ranked[end].seconds - jobs[0].seconds), start, stop)
            for end, start, stop in ((low - 1, low - 1, high), (high + 1, low, high + 1))
            if 0 <= end < len(ranked) and (stop - start + 1) * ranked[stop].seconds <= BATCH_SECONDS
        ]
        if not fits:
            return ranked[low : high + 1]
        _, low, high = min(fits)


def _in_time(jobs: Sequence[Job], speed: Speed, depths: Sequence[int], budget: float) -> list[Job]:
    """The jobs that wait longest, as many as the shallowest depth runs in half of the budget, and at least one."""
    count = 1
    while count < len(jobs):
        lengths = [job.seconds for job in jobs[: count + 1]]
        chosen = [job.ticket.depth or depths[0] for job in jobs[: count + 1]]
        if speed.seconds(lengths, chosen) > budget / 2 or len(lengths) * max(lengths) > BATCH_SECONDS:
            break
        count += 1
    return list(jobs[:count])


def _resolve(future: "asyncio.Future[Any]", value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
