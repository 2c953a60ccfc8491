"""Packages that are installed on request: `pip install 'foldray[EXTRA]'`."""

from importlib.util import find_spec

from foldray.errors import UserError


def check_extra(extra: str, *modules: str, where: str, what: str) -> None:
    """Refuse what asks for modules that are not installed. Raises UserError, with the command that installs them.

    where, what: the field that asks for them, and what in it does.
    """
    if not all(map(_is_installed, modules)):
        raise UserError(where, f"{what} needs the extra '{extra}': pip install 'foldray[{extra}]'")


def _is_installed(module: str) -> bool:
    # A folder of that name where we run, such as W&B leaves, would pass for a package without a file of its own.
    found = find_spec(module)
    return found is not None and found.origin is not None
