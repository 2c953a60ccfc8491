"""foldray: fold speech foundation models, so that one file of the seed's size serves every depth."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foldray.errors import UserError
    from foldray.model_folder import load_model, save_model
    from foldray.models import fold, set_depths, unroll
    from foldray.plan import FoldPlan, Private
    from foldray.seeding import fold_checkpoint

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
    "FoldPlan": "foldray.plan",
    "Private": "foldray.plan",
    "UserError": "foldray.errors",
    "fold": "foldray.models",
    "fold_checkpoint": "foldray.seeding",
    "set_depths": "foldray.models",
    "unroll": "foldray.models",
    "load_model": "foldray.model_folder",
    "save_model": "foldray.model_folder",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and transformers take seconds, and `foldray --help` needs neither.
    if name not in _HOMES:
        raise AttributeError(f"module 'foldray' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
