"""Seeds from deeper models: which layers of a checkpoint become the physical ones."""

from typing import Literal


def seed_layers(available: int, num_layers: int, method: Literal["stepwise", "first"]) -> list[int]:
    """Indices of the `num_layers` layers to take of `available`.

    `stepwise` takes evenly spaced layers, the first and the last among them (best for strictly tied
    layers in arXiv 2410.20672, section 3); `first` takes the lowest.
    """
    if num_layers > available:
        raise ValueError(f"the checkpoint has {available} layers, the fold wants {num_layers}")
    if method == "first" or num_layers == 1:
        return list(range(num_layers))
    return [round(i * (available - 1) / (num_layers - 1)) for i in range(num_layers)]
