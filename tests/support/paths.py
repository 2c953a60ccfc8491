"""Folders that tests read from."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared"
AN4 = SHARED / "data" / "an4"
