"""`--depth auto`: for each utterance the shallowest depth that is sure enough.

An utterance runs at the shallowest depth first. While the geometric mean of its tokens' probabilities is below a
threshold, it runs again at the next depth; the deepest always counts. The threshold comes from a validation set: the
one with the fewest MACs whose WER is, at 95 % confidence, at most a stated loss above that of the deepest depth.

Why this confidence: on the quickstart's model it separates right from wrong utterances better than the mean over
frames, the sum over frames per token, and the least probable token (docs/TRANSCRIBING.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foldray.results.auto_depth import AutoPoint

ONE_SIDED = 1.645
"""Standard deviations of a one-sided bound at 95 %."""
MOST_POINTS = 64
"""Most points of a curve that are kept."""


@dataclass(frozen=True)
class Measured:
    """A set of N utterances, decoded at D depths.

    Attributes:
        errors_DN: Word errors.
        confidence_DN: Confidences.
        words_N: Words of the references.
        seconds_N: Lengths.
        macs_D: MACs per second of audio of each depth.
    """

    errors_DN: npt.NDArray[np.int64]
    confidence_DN: npt.NDArray[np.float64]
    words_N: npt.NDArray[np.int64]
    seconds_N: npt.NDArray[np.float64]
    macs_D: npt.NDArray[np.float64]

    def at(self, threshold: float) -> AutoPoint:
        """What a threshold gives on these utterances."""
        sure_DN = self.confidence_DN >= threshold
        sure_DN[-1] = True
        stop_N = sure_DN.argmax(axis=0)
        numbers = np.arange(len(stop_N))
        passes_D = np.cumsum(self.macs_D)  # a deeper pass begins anew
        seconds = self.seconds_N.sum()
        return AutoPoint(
            threshold,
            float((passes_D[stop_N] * self.seconds_N).sum() / seconds),
            float(self.errors_DN[stop_N, numbers].sum() / max(1, self.words_N.sum())),
            tuple(float(np.mean(stop_N == d)) for d in range(len(self.macs_D))),
        )

    def loss_bound(self, threshold: float) -> float:
        """Upper 95 % bound (one-sided, normal) of the WER above that of the deepest depth; utterances are the units."""
        sure_DN = self.confidence_DN >= threshold
        sure_DN[-1] = True
        stop_N = sure_DN.argmax(axis=0)
        more_N = self.errors_DN[stop_N, np.arange(len(stop_N))] - self.errors_DN[-1]
        spread = 0.0 if len(more_N) < 2 else float(more_N.std(ddof=1)) * len(more_N) ** 0.5
        return float((more_N.sum() + ONE_SIDED * spread) / max(1, self.words_N.sum()))

    @property
    def deepest(self) -> AutoPoint:
        """The deepest depth alone, without passes before it."""
        shares = (*[0.0] * (len(self.macs_D) - 1), 1.0)
        wer = float(self.errors_DN[-1].sum() / max(1, self.words_N.sum()))
        return AutoPoint(1.0, float(self.macs_D[-1]), wer, shares)


def curve_of(measured: Measured) -> list[AutoPoint]:
    """A point for each threshold that differs, from the fewest MACs (everything stops at once) to the most."""
    confidences = np.unique(measured.confidence_DN[:-1])
    # Between two confidences, so that a file's rounding decides nothing.
    between = (confidences[1:] + confidences[:-1]) / 2
    return [measured.at(threshold) for threshold in (0.0, *between.tolist(), 1.0)]


def choose(measured: Measured, loss: float) -> AutoPoint | None:
    """The point with the fewest MACs whose WER is surely at most `loss` above that of the deepest depth.

    "Surely": by the upper 95 % bound, so that a small validation set does not promise what a larger one breaks.
    None if there is none with fewer MACs than the deepest depth alone.
    """
    deepest = measured.deepest
    fitting = [point for point in curve_of(measured) if measured.loss_bound(point.threshold) <= loss + 1e-12]
    best = min(fitting, key=lambda point: point.macs_per_audio_second, default=None)
    return best if best and best.macs_per_audio_second < deepest.macs_per_audio_second else None


def thinned(points: Sequence[AutoPoint]) -> tuple[AutoPoint, ...]:
    """At most MOST_POINTS of a curve, evenly spaced, with both ends."""
    if len(points) <= MOST_POINTS:
        return tuple(points)
    return tuple(points[i] for i in np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int))
