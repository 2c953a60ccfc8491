"""foldray: fold speech foundation models, so that one file of the seed's size serves every depth."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foldray.model_folder import load_model
    from foldray.models import fold, unroll
    from foldray.plan import FoldPlan

__version__ = "0.1.0"
__all__ = ["FoldPlan", "__version__", "fold", "load_model", "unroll"]

_HOMES = {
    "FoldPlan": "foldray.plan",
    "fold": "foldray.models",
    "unroll": "foldray.models",
    "load_model": "foldray.model_folder",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and transformers take seconds, and `foldray --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'foldray' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
