"""What the optimiser is told: rates over the run, and which parameters decay."""

import math
from typing import Any

from torch import nn


def learning_rate(progress: float, warmup: float, final: float) -> float:
    """Share of the peak rate: linear rise over `warmup` of the run, then half a cosine down to `final`."""
    if progress < warmup:
        # Half a percent of the warm-up at the very first step: a rate of zero would waste it.
        return max(progress / warmup, 0.005)
    fallen = (progress - warmup) / (1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, fallen)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and other vectors do not. Order follows the model's parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
