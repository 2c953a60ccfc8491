"""The example without Ray runs as a reader would run it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.main

PROJECT = Path(__file__).parents[2]
RUN = """
import runpy, sys
runpy.run_path("examples/fold_minimal.py", run_name="__main__")
print("ray imported:", "ray" in sys.modules)
"""


def test_the_minimal_example_learns_at_every_depth_without_ray() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"^step +\d+  depth 3: (\S+)  depth 6: (\S+)$", done.stdout, re.MULTILINE)
    assert all(float(last) < float(first) for first, last in zip(losses[0], losses[-1], strict=True)), done.stdout
    rates = re.findall(r"^depth (\d)  WER (\S+)%  CER (\S+)%$", done.stdout, re.MULTILINE)
    assert [(depth, float(wer) < 50) for depth, wer, _ in rates] == [("3", True), ("6", True)], done.stdout
    assert re.findall(r"^depth (\d) .* difference (\S+)$", done.stdout, re.MULTILINE) == [("3", "0.0"), ("6", "0.0")]
    assert done.stdout.endswith("ray imported: False\n")
