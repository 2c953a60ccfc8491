"""Where a model runs for inference: on CPUs, or on this machine's GPU."""

from foldray.errors import UserError

CPU = "cpu"


def inference_device(use_gpu: bool) -> str:
    """Return torch's name of the device that inference runs on.

    Args:
        use_gpu: Whether a GPU was asked for.

    Raises:
        UserError: A GPU was asked for, and torch finds none.

    Example:
        >>> inference_device(False)
        'cpu'
    """
    if not use_gpu:
        return CPU
    if not has_gpu():
        raise UserError("--use-gpu", "torch finds no GPU on this machine; leave the option out to run on CPUs")
    return "cuda"


def has_gpu() -> bool:
    """Return whether torch finds a GPU on this machine."""
    import torch

    return torch.cuda.is_available()
