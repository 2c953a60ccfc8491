"""Optional dependencies, installed with `pip install 'foldray[EXTRA]'`."""

from importlib.util import find_spec

from foldray.errors import UserError


def check_extra(extra: str, *modules: str, where: str, what: str) -> None:
    """Check that optional dependencies are installed.

    Args:
        extra: The extra that installs them.
        modules: The modules that must be importable.
        where: The field or option that needs them.
        what: The value of that field that needs them.

    Raises:
        UserError: A module is missing; the message has the command that installs it.
    """
    if not all(map(is_installed, modules)):
        raise UserError(where, f"{what} needs the extra '{extra}': pip install 'foldray[{extra}]'")


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    # A folder of the same name in the working directory, such as `wandb/`, is found as a namespace package.
    found = find_spec(module)
    return found is not None and found.origin is not None
