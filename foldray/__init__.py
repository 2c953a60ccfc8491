"""foldray: fold speech foundation models, so that one file of the seed's size serves every depth."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foldray.errors import UserError
    from foldray.folding.plan import FoldPlan, Private
    from foldray.models.fold import fold, set_depths, unroll
    from foldray.models.from_checkpoint import fold_checkpoint
    from foldray.models.save_load import load_model, save_model

__version__ = "0.1.0"
__all__ = [
    "FoldPlan",
    "Private",
    "UserError",
    "__version__",
    "fold",
    "fold_checkpoint",
    "load_model",
    "save_model",
    "set_depths",
    "unroll",
]

_HOMES = {
    "FoldPlan": "foldray.folding.plan",
    "Private": "foldray.folding.plan",
    "UserError": "foldray.errors",
    "fold": "foldray.models.fold",
    "fold_checkpoint": "foldray.models.from_checkpoint",
    "set_depths": "foldray.models.fold",
    "unroll": "foldray.models.fold",
    "load_model": "foldray.models.save_load",
    "save_model": "foldray.models.save_load",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and transformers take seconds, and `foldray --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'foldray' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
