"""Folders that tests read from."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
AN4 = PROJECT.parent / "shared" / "data" / "an4"
