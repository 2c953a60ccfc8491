"""Batches by depth: every job gets its own result, whatever the others do."""

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from foldray.serving.budget import Costs, Speed
from foldray.serving.scheduler import BATCH_SECONDS, Job, OnResult, Scheduler, Ticket

Batches = list[list[tuple[float, int]]]


class Runner:
    """Adds up samples; the first batch waits for `open`, so that what arrives meanwhile is the next batch."""

    def __init__(self) -> None:
        self.batches: Batches = []
        self.open = threading.Event()

    def __call__(self, jobs: Sequence[Job], depths: Sequence[int], on_result: OnResult) -> None:
        assert self.open.wait(10)
        self.batches.append([(job.seconds, depth) for job, depth in zip(jobs, depths, strict=True)])
        if any(np.isnan(job.samples).any() for job in jobs):
            raise ValueError("not a number")
        for number, (job, depth) in enumerate(zip(jobs, depths, strict=True)):
            on_result(number, (float(job.samples.sum()), depth))


def job(seconds: float, depth: int | None, value: float = 1.0, *, times: bool = False) -> Job:
    return Job(np.full(int(seconds * 16_000), value, np.float32), Ticket(depth), times=times)


def scheduler(runner: Runner, *, mixed: bool = True, budget: float | None = None) -> Scheduler:
    return Scheduler(runner, (4, 8, 12), Speed(Costs(0.0, 0.0, 0.001)), mixed=mixed, budget=budget)


async def run_all(own: Scheduler, runner: Runner, jobs: Sequence[Job]) -> list[tuple[tuple[float, int], int]]:
    """Results of jobs that wait while a first one, of 0.1 s, runs."""
    first = asyncio.create_task(own.result(job(0.1, 12)))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(own.result(each)) for each in jobs]
    await asyncio.sleep(0.01)
    runner.open.set()
    await first
    return await asyncio.gather(*waiting)


def test_what_waits_is_one_batch_of_mixed_depths() -> None:
    runner = Runner()
    jobs = [job(2, 12), job(1, 4), job(3, 8)]
    found = asyncio.run(run_all(scheduler(runner), runner, jobs))
    assert found == [((32_000.0, 12), 3), ((16_000.0, 4), 3), ((48_000.0, 8), 3)]
    assert runner.batches[1] == [(1.0, 4), (2.0, 12), (3.0, 8)]


def test_a_batch_has_clips_of_like_length_and_a_bound() -> None:
    runner = Runner()
    jobs = [job(19, 4), *(job(1, 4) for _ in range(5)), job(18, 4), job(17, 4)]
    asyncio.run(run_all(scheduler(runner), runner, jobs))
    found = [[seconds for seconds, _ in batch] for batch in runner.batches[1:]]
    assert found == [[18, 19], [1, 1, 1, 1, 1], [17]]
    assert all(len(batch) * batch[-1] <= BATCH_SECONDS for batch in found)


def test_a_decoder_has_one_depth_and_the_same_options_in_a_batch() -> None:
    runner = Runner()
    jobs = [job(1, 4), job(1, 12), job(1, 4, times=True), job(1, 4)]
    asyncio.run(run_all(scheduler(runner, mixed=False), runner, jobs))
    assert [[depth for _, depth in batch] for batch in runner.batches[1:]] == [[4, 4], [12], [4]]


def test_a_job_that_fails_fails_alone() -> None:
    runner = Runner()
    jobs = [job(1, 4), job(2, 8, value=float("nan")), job(3, 12)]

    async def outcomes() -> list[object]:
        own = scheduler(runner)
        runner.open.set()
        return await asyncio.gather(*map(own.result, jobs), return_exceptions=True)

    first, failed, last = asyncio.run(outcomes())
    assert (first, last) == (((16_000.0, 4), 1), ((48_000.0, 12), 1))
    assert isinstance(failed, ValueError)


def test_a_cancelled_job_leaves_the_queue() -> None:
    runner = Runner()

    async def cancel_one() -> None:
        own = scheduler(runner)
        first = asyncio.create_task(own.result(job(0.1, 12)))
        await asyncio.sleep(0.01)
        kept, gone = (asyncio.create_task(own.result(job(seconds, 4))) for seconds in (1, 2))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        runner.open.set()
        await asyncio.gather(first, kept)

    asyncio.run(cancel_one())
    assert runner.batches[1:] == [[(1.0, 4)]]


@pytest.mark.parametrize(("count", "depth"), [(1, 12), (8, 8), (16, 4)])
def test_the_budget_chooses_by_what_waits(count: int, depth: int) -> None:
    """A second of audio takes 1 ms a block: eight clips of 5 s take 0.48 s at depth 12; of 16, half must wait."""
    runner = Runner()
    runner.open.set()

    async def run() -> list[Ticket]:
        own = scheduler(runner, budget=0.5)
        tickets = [own.ticket(None) for _ in range(count)]
        await asyncio.gather(*(own.result(Job(np.ones(80_000, np.float32), ticket)) for ticket in tickets))
        return tickets

    tickets = asyncio.run(run())
    assert runner.batches[0] == [(5.0, depth)] * min(count, 8)
    assert [ticket.depth for ticket in tickets[:8]] == [depth] * min(count, 8)


def test_all_clips_of_a_request_have_its_first_ones_depth() -> None:
    runner = Runner()
    own = scheduler(runner, budget=0.5)
    ticket = own.ticket(None)
    long = [Job(np.ones(320_000, np.float32), ticket) for _ in range(4)]
    asyncio.run(run_all(own, runner, long))
    assert {depth for batch in runner.batches[1:] for _, depth in batch} == {ticket.depth}


@pytest.mark.parametrize(("seconds", "late", "rows"), [(5.0, 5, 6), (20.0, 2, 1)])
def test_a_late_upload_leaves_other_requests_their_depth(seconds: float, late: int, rows: int) -> None:
    """Its later clips, in the batch or behind it, have their depth: that its answer is due makes no other shallow."""
    runner = Runner()
    runner.open.set()

    async def run() -> Ticket:
        own = scheduler(runner, budget=0.5)
        ticket, upload = own.ticket(None), Ticket(8 if rows > 1 else 12, due=time.monotonic() - 60)
        samples = np.ones(int(seconds * 16_000), np.float32)
        await asyncio.gather(*(own.result(Job(samples, each)) for each in [ticket, *[upload] * late]))
        return ticket

    assert asyncio.run(run()).depth == 12
    assert len(runner.batches[0]) == rows
