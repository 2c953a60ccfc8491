"""The calibration of `--depth auto` in a model folder: its threshold, and the curve it was chosen from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import ConfigDict, with_config

from foldray import storage
from foldray.errors import DamagedFileError, UserError
from foldray.storage.layout import ModelFolder
from foldray.storage.records import read_as


@dataclass(frozen=True)
class AutoPoint:
    """A threshold and what it gives on the validation set.

    Attributes:
        threshold: Lowest confidence that counts as sure.
        macs_per_audio_second: Of all passes together.
        wer: A fraction.
        shares: Share of the utterances that stop at each depth.
    """

    threshold: float
    macs_per_audio_second: float
    wer: float
    shares: tuple[float, ...]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class AutoDepth:
    """A calibrated choice of depth, as in a model folder's `auto.json`.

    Attributes:
        depths: The depths that are tried, shallowest first.
        threshold: Lowest confidence that counts as sure.
        loss: WER above that of the deepest depth which the calibration allowed, a fraction.
        corpus, split: The validation set.
        utterances: Its size.
        deepest: The deepest depth alone.
        chosen: The threshold's point.
        curve: Points from the fewest MACs to the most.
    """

    depths: tuple[int, ...]
    threshold: float
    loss: float
    corpus: str
    split: str
    utterances: int
    deepest: AutoPoint
    chosen: AutoPoint
    curve: tuple[AutoPoint, ...]


def write_auto(folder: str, auto: AutoDepth) -> None:
    """Write a calibration into a model folder."""
    storage.write_json(ModelFolder(folder).auto, asdict(auto))


def has_auto(folder: str) -> bool:
    """Whether a model folder has a calibration."""
    return storage.exists(ModelFolder(folder).auto)


def read_auto(folder: str, depths: Sequence[int]) -> AutoDepth:
    """Read the calibration of a model folder.

    Args:
        folder: Folder or URI of a model.
        depths: The model's depths.

    Raises:
        UserError: There is none, or it is damaged or another model's.
    """
    file = ModelFolder(folder).auto
    if not storage.exists(file):
        raise UserError("--depth", "auto needs a calibration; run `foldray calibrate MODEL` first")
    auto = read_as(AutoDepth, file)
    if list(auto.depths) != [depth for depth in depths if depth in auto.depths] or not auto.depths:
        raise DamagedFileError(file, f"has the depths {list(auto.depths)[:8]}, the model {list(depths)}")
    return auto
