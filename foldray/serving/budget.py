"""The deepest depth that keeps a latency budget under the present load."""

import math
import re
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foldray.errors import UserError

MARGIN = 0.85
"""Share of the budget that a batch may use by prediction; the rest is for HTTP and for what else the machine does."""
REMEMBERED = 40
"""Batches whose predictions are compared with their times."""
LOAD_SECONDS = 3.0
"""How far the load is averaged back."""
MOST_LOAD = 0.9
"""A depth at which arriving audio takes a larger share of the time than this is too deep: the queue would grow."""

LATENCY = re.compile(r"(\d+(?:\.\d+)?)(ms|s)?")

Seconds = Callable[[Sequence[float], Sequence[int]], float]


def parse_latency(text: str | None, where: str, unit: str = "") -> float | None:
    """Seconds of a budget such as 300ms or 1.5s; None for none.

    Args:
        text: The budget.
        where: The option or field that it comes from.
        unit: The unit of a number without one, which is an error by default.

    Raises:
        UserError: The text is no time, or one that no budget can be.

    Example:
        >>> parse_latency("300ms", "--latency")
        0.3
    """
    if text is None:
        return None
    match = LATENCY.fullmatch(text.strip())
    given = match and (match[2] or unit)
    seconds = float(match[1]) / (1000 if given == "ms" else 1) if match and given else 0.0
    if not 0.01 <= seconds <= 600:
        raise UserError(where, f"'{text}' is not a time from 10ms to 600s, such as 300ms or 1.5s")
    return seconds


@dataclass(frozen=True)
class Costs:
    """Seconds of a batch: of itself, of each second of padded audio, and of each second of audio and block."""

    batch: float
    audio: float
    block: float


def fit_costs(run: Seconds, depths: Sequence[int], seconds: float = 4.0, rows: int = 4) -> Costs:
    """Measure what batches cost.

    Args:
        run: Runs a batch of clips of so many seconds at so many depths, and returns its time.
        depths: The depths of the model, shallowest first.
        seconds: Length of a clip.
        rows: Clips of a large batch.
    """
    shallow, deep = depths[0], depths[-1]
    for warm in (1, rows):
        run([seconds] * warm, [deep] * warm)
    padded = rows * seconds
    low, high = (run([seconds] * rows, [depth] * rows) for depth in (shallow, deep))
    block = max(0.0, high - low) / (deep - shallow) / padded if deep > shallow else low / padded / deep
    audio = max(0.0, low / padded - shallow * block)
    single = run([seconds], [shallow])
    return Costs(max(0.0, single - seconds * (audio + shallow * block)), audio, block)


class Speed:
    """Predicts how long batches take, and learns how busy the machine is from those that ran.

    Args:
        costs: What batches cost on an idle machine.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self._ratios: deque[float] = deque(maxlen=REMEMBERED)

    def seconds(self, lengths: Sequence[float], depths: Sequence[int]) -> float:
        """Predicted time of a batch of clips (seconds of audio), with a depth for each."""
        longest = max(lengths, default=0.0)
        plain = self.costs.batch + longest * sum(self.costs.audio + depth * self.costs.block for depth in depths)
        return plain * self._slowness()

    def per_audio_second(self, depth: int) -> float:
        """Predicted time of a second of audio in a large batch."""
        typical = statistics.median(self._ratios) if self._ratios else 1.0
        return (self.costs.audio + depth * self.costs.block) * typical

    def learn(self, lengths: Sequence[float], depths: Sequence[int], took: float) -> None:
        """Compare a prediction with the time that the batch took."""
        self._ratios.append(self._slowness() * took / max(self.seconds(lengths, depths), 1e-9))

    def _slowness(self) -> float:
        # Of nine in ten batches the time is no longer: the budget is to hold for nearly all.
        ratios = sorted(self._ratios)
        return ratios[min(len(ratios) - 1, int(0.9 * len(ratios)))] if ratios else 1.0


class Load:
    """Seconds of audio that arrive in a second, averaged over the last LOAD_SECONDS."""

    def __init__(self) -> None:
        self._rate, self._last = 0.0, -math.inf

    def add(self, seconds: float, now: float) -> None:
        """Count a clip that arrives."""
        self._rate = self.at(now) + seconds / LOAD_SECONDS
        self._last = now

    def at(self, now: float) -> float:
        """The load at a time."""
        return self._rate * math.exp(-(now - self._last) / LOAD_SECONDS)


def deepest_in_time(
    speed: Speed, depths: Sequence[int], lengths: Sequence[float], fixed: Sequence[int | None], slack: float,
    budget: float, load: float,
) -> int:  # fmt: skip
    """Choose the depth of all clips of a batch that leave it to the budget.

    Whoever arrives while this batch runs waits for its end and then for a batch of its own, which is larger the higher
    the load: so a batch may take the budget divided by one plus the share of time that is busy.

    Args:
        speed: Predicts times.
        depths: The depths to choose from, shallowest first.
        lengths: Seconds of each clip.
        fixed: Depths that requests asked for; None for those to choose.
        slack: Seconds until the first answer is due.
        budget: Seconds from a request to its answer.
        load: Seconds of audio that arrive in a second.

    Returns:
        The depth; the shallowest where none is fast enough.
    """
    for depth in reversed(depths):
        busy = load * speed.per_audio_second(depth)
        takes = speed.seconds(lengths, [each or depth for each in fixed])
        if busy <= MOST_LOAD and takes <= MARGIN * min(slack, budget / (1 + busy)):
            return depth
    return depths[0]
