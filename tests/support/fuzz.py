"""Damaged inputs without end: `python -m tests.support.fuzz --minutes 10 --seed 0 [--kind audio]`.

Every case damages one valid input at random and hands it to the function that a command calls. A case passes if it
ends in a result, a UserError or a reason for the quarantine. Anything else is a finding, as are hangs and audio that a
cut-off file loses in silence. `--case audio:123` runs one case again.
"""

import argparse
import multiprocessing as mp
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from foldray.data.audio import BadAudioError
from foldray.errors import UserError
from tests.support.fuzz_kinds import KINDS, LostAudioError, Surroundings

HANG_SECONDS = 10
"""A case that takes longer hangs; one that does not even answer the alarm is killed after three times that."""
MEMORY_BYTES = 12 * 2**30
SHARES = {"audio": 50, "spec": 30, "ngram": 8, "results": 6, "manifest": 4, "model": 2}
"""How many of a hundred cases each kind has: kinds cost from a millisecond to a tenth of a second."""


class HangError(Exception):
    """A case that does not end."""


@dataclass
class Outcome:
    """What the cases of one process came to."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    """The first case of each finding, by its place and kind of error."""


def run_case(kind: str, number: int, seed: int, around: Surroundings) -> tuple[bool, str]:
    """Run one case. Returns whether it was refused as bad input, and the finding with its place, or ''."""
    rng = random.Random(f"{seed}:{kind}:{number}")
    try:
        with _alarm(HANG_SECONDS):
            KINDS[kind](rng, around)
    except (UserError, BadAudioError):
        return True, ""
    except KeyboardInterrupt:  # what DuckDB makes of the alarm
        return False, f"{kind}: HangError: over {HANG_SECONDS} s"
    except (HangError, LostAudioError) as error:
        return False, f"{kind}: {type(error).__name__}: {error}"
    except Exception as error:
        return False, f"{kind}: {type(error).__name__} at {_place(error)}: {str(error)[:120]!r}"
    return False, ""


def _place(error: BaseException) -> str:
    """The last line of foldray that an error passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/foldray/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/foldray/')[2]}:{frames[-1].lineno}" if frames else "the fuzzer"


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise HangError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def draw_kind(number: int, seed: int, kinds: tuple[str, ...]) -> str:
    """The kind of a case: a function of its number."""
    shares = [SHARES[kind] for kind in kinds]
    return random.Random(f"{seed}:{number}").choices(kinds, shares)[0]


def fuzz(
    seed: int,
    seconds: float,
    most: int,
    kinds: tuple[str, ...] = tuple(KINDS),
    first: int = 0,
    step: int = 1,
    on_case: Callable[[int], None] = lambda _number: None,
) -> Outcome:
    """Run the cases first, first + step, … below `most`, until the time is over."""
    outcome, until = Outcome(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        around = Surroundings(Path(folder))
        for number in range(first, most, step):
            if time.monotonic() > until:
                break
            on_case(number)
            kind = draw_kind(number, seed, kinds)
            refused, finding = run_case(kind, number, seed, around)
            outcome.cases[kind] += 1
            outcome.refused[kind] += refused
            if finding:
                outcome.findings.setdefault(finding.partition(": '")[0], f"--case {kind}:{number}  {finding}")
    return outcome


def _process(
    arguments: argparse.Namespace, first: int, step: int, at: "mp.sharedctypes.Synchronized[int]", out: str
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    kinds = (arguments.kind,) if arguments.kind else tuple(KINDS)

    def note(number: int) -> None:
        at.value = number

    outcome = fuzz(arguments.seed, arguments.left, arguments.cases, kinds, first, step, note)
    with open(out, "a", encoding="utf-8") as file:
        for kind, count in outcome.cases.items():
            file.write(f"count\t{kind}\t{count}\t{outcome.refused[kind]}\n")
        file.writelines(f"found\t{finding}\n" for finding in outcome.findings.values())
    os._exit(0)  # threads that a damaged input left waiting in a library would hold the process


def _supervise(arguments: argparse.Namespace, out: str) -> None:
    """Run the processes; one that dies or hangs in a library is a finding, and another resumes behind it."""
    until = time.monotonic() + 60 * arguments.minutes
    context = mp.get_context("fork")
    at = [context.Value("q", first) for first in range(arguments.processes)]

    def start(first: int, lane: int) -> mp.Process:
        arguments.left = until - time.monotonic()
        process = context.Process(target=_process, args=(arguments, first, arguments.processes, at[lane], out))
        process.start()
        return process  # type: ignore[return-value]

    running = {lane: start(lane, lane) for lane in range(arguments.processes)}
    seen = dict.fromkeys(running, (-1, time.monotonic()))
    while running:
        time.sleep(0.2)
        for lane, process in list(running.items()):
            number, since = at[lane].value, seen[lane][1]
            if number != seen[lane][0]:
                seen[lane] = number, time.monotonic()
            hangs = process.is_alive() and time.monotonic() - since > 3 * HANG_SECONDS and number == seen[lane][0]
            if hangs:
                process.kill()
                process.join()
            if process.is_alive():
                continue
            del running[lane]
            if hangs or process.exitcode:
                kind = draw_kind(number, arguments.seed, (arguments.kind,) if arguments.kind else tuple(KINDS))
                how = "hangs in a library" if hangs else f"ends the process with {process.exitcode}"
                with open(out, "a", encoding="utf-8") as file:
                    file.write(f"found\t--case {kind}:{number}  {kind}: {how}\n")
                running[lane] = start(number + arguments.processes, lane)
                seen[lane] = number, time.monotonic()


def preload() -> None:
    """Import what cases need: an alarm in the middle of an import leaves half a module behind."""
    import torch
    import torchaudio.functional  # noqa: F401

    torch.set_num_threads(1)  # the threads of an OpenMP pool do not survive the fork, and the child would wait for them

    with tempfile.TemporaryDirectory() as folder:
        around = Surroundings(Path(folder))
        for kind in KINDS.values():
            with suppress(Exception):
                kind(random.Random(0), around)


def main() -> int:
    """Run the command; 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=tuple(KINDS))
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", help="one case to run again with its traceback, such as audio:123")
    arguments = parser.parse_args()
    preload()
    if arguments.case:
        kind, _, number = arguments.case.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            KINDS[kind](random.Random(f"{arguments.seed}:{kind}:{number}"), Surroundings(Path(folder)))
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "outcome")
        out.touch()
        _supervise(arguments, str(out))
        lines = [line.split("\t") for line in out.read_text(encoding="utf-8").splitlines()]
    cases: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for line in lines:
        if line[0] == "count":
            cases[line[1]] += int(line[2])
            refused[line[1]] += int(line[3])
    found = sorted(
        {line[1].partition("  ")[2].partition(": '")[0]: line[1] for line in lines if line[0] == "found"}.values()
    )
    for finding in found:
        sys.stdout.write(f"seed {arguments.seed}  {finding}\n")
    counts = ", ".join(f"{count} {kind} ({refused[kind]} refused)" for kind, count in sorted(cases.items()))
    sys.stdout.write(f"{cases.total()} cases in {time.monotonic() - began:.0f} s: {counts}; {len(found)} findings\n")
    return int(bool(found))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
