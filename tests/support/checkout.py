"""A copy of this project."""

import shutil
import subprocess
from pathlib import Path

from tests.support.paths import PROJECT


def copy_checkout(folder: Path) -> None:
    """The files of this project that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, folder / name)
