"""Names of models in requests: `name`, `name@6`, `name@auto`."""

import re
from dataclasses import dataclass

from foldray.errors import UserError
from foldray.serving.messages import AskedDepth, Refusal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str) -> str:
    """Return a name that a model may be served by. Raises UserError."""
    if not NAME.fullmatch(name):
        raise UserError("--name", f"{name!r} is not a name; use letters, digits, '.', '_' and '-'")
    return name


@dataclass(frozen=True)
class ServedNames:
    """The names by which requests reach a model and its depths.

    Attributes:
        name: The model's name.
        depths: The depths that are served, shallowest first.
        usual: The depth of the bare name; None leaves it to the latency budget.
        auto: Whether `name@auto` is calibrated.
    """

    name: str
    depths: tuple[int, ...]
    usual: int | None
    auto: bool = False

    def all(self) -> list[tuple[str, AskedDepth]]:
        """Every name with its depth, the bare one first."""
        named: list[tuple[str, AskedDepth]] = [(self.name, self.usual)]
        named += [(f"{self.name}@{depth}", depth) for depth in self.depths]
        if self.auto:
            named.append((f"{self.name}@auto", "auto"))
        return named

    def depth_of(self, asked: str) -> AskedDepth | Refusal:
        """The depth that a name asks for, None for what the budget chooses.

        Example:
            >>> names = ServedNames("an4", (6, 12), usual=12)
            >>> names.depth_of("an4"), names.depth_of("an4@6")
            (12, 6)
        """
        found = dict(self.all())
        if asked in found:
            return found[asked]
        if asked == f"{self.name}@auto":
            problem = f"auto needs a calibration (`foldray calibrate`); name a depth: {self._list()}"
            return Refusal(400, problem, "not_calibrated", "model")
        return Refusal(404, f"there is no such model here; use one of {self._list()}", "model_not_found", "model")

    def _list(self) -> str:
        return ", ".join(name for name, _ in self.all())
